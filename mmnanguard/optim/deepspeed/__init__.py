"""The part of the guard that knows DeepSpeed, and never imports it.

1. ``refusals``: the engines that cannot be guarded.
2. ``places`` and ``engine_places``: where an engine's optimizer keeps
   gradients and weights, and how a window ends without an update.
3. ``params``: the parameters as the guard sees them.
4. ``guard_config``: the changes of ``apply_guard`` to a config.
"""
