"""What the guard knows of DeepSpeed, which is imported nowhere.

1. ``refusals``: the engines that cannot be guarded.
2. ``layout`` and ``layouts``: where an engine's optimizer keeps gradients and
   weights, and how a window ends without an update.
3. ``params``: the parameters as the guard sees them.
4. ``guard_config``: what ``apply_guard`` changes in a config.
"""
