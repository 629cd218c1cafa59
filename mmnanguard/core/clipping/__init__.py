"""Clip rules on numbers: a gradient norm in, a coefficient out.

Read ``clip_rule`` first; the other modules serve it:

1. ``clip_rule``: ``ClipRule``, the base of all rules, and the plain rules.
2. ``rules``: the rules that a config can name.
3. ``contract``: the check of a rule that a user wrote.
4. ``checks``: checks of the values that ``clip_grad`` may have.
5. ``moments``: the running mean and variance of norms (ZClip).
6. ``window``: a sorted window of recent norms (AutoClip).

Rules that need tensors are in ``numerics/update/grad_rules``.
"""
