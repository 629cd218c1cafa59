"""Hooks that look at a batch before the model does.

1. ``input_guard_hook``: reject, repair or report non-finite inputs.
2. ``input_policy``: its arguments.
3. ``input_look``: one look at a batch, without a sync.
4. ``bad_inputs``: the bad samples of all ranks.
5. ``bad_samples_hook``: report the samples that ``ValidateSample`` found.
"""
