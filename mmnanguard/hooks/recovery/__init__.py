"""Hooks that keep a run's state clean, and bring an earlier state back.

Reading order:

1. ``state_audit_hook``: find non-finite state before it is saved.
2. ``kept_state``: all tensors that a run keeps, with their names.
3. ``safe_checkpoints``: let only clean checkpoints through
   (``atomic_checkpoint_writes``, ``pointers``).
4. ``rollback_hook``: go back to an earlier state (``earlier_state``).
"""
