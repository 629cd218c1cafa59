"""Copies of the tensors that forward passes change, to undo a window.

1. ``snapshot``: ``Snapshot``, the copies and the comparison of one window.
2. ``tensor_backup``: the copy of one buffer or parameter.
3. ``uncounted``: changes that version counters do not show.
4. ``change_tracker``: the knowledge that is kept from window to window:
   which modules and tensors a model has, and which of them change.
5. ``averaged_modules``: momentum encoders, whose parameters forward changes.
"""
