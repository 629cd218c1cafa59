"""Copies of what a forward pass changes, so that it can be restored.

1. ``snapshot``: ``Snapshot``, the copies of one window.
2. ``tensor_backup``: the copy of one buffer or parameter.
3. ``module_structure``: the names that hang on one module.
4. ``averaged_modules``: momentum encoders, whose parameters forward changes.
"""
