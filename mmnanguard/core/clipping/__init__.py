"""Clip rules on numbers: a gradient norm in, a coefficient out.

Read ``rules`` first; the other modules serve it:

1. ``rules``: ``ClipRule`` and the rules that a config can name.
2. ``checks``: checks of the values that ``clip_grad`` can hold.
3. ``moments``: the running mean and variance of norms (ZClip).
4. ``window``: a sorted window of recent norms (AutoClip).

Rules that need tensors are in ``numerics/update/grad_rules``.
"""
