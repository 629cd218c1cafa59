"""Hooks that check the data before the model sees it.

1. ``input_guard_hook``: reject, repair or report non-finite inputs.
2. ``input_policy``: the arguments of that hook.
3. ``input_check``: the check of a batch, without a sync.
4. ``masked_keys``: the keys that are not finite on purpose.
5. ``bad_inputs``: the bad samples of all ranks.
6. ``bad_samples_hook``: report the samples that ``ValidateSample`` found.
"""
