"""Hooks that keep a run's state clean, and bring an earlier state back.

Reading order:

1. ``state_audit_hook``: find non-finite state before it is saved.
2. ``kept_state``: all tensors that a run keeps, with their names.
3. ``safe_checkpoints``: let only clean checkpoints through
   (``atomic_checkpoint_writes``, ``pointers``).
4. ``rollback_hook``: go back to an earlier state. ``kept_states`` chooses an
   ``earlier_state`` in memory, or a ``saved_state`` in a checkpoint of the
   same run (``lineage``). ``lower_rate`` decides on the learning rate.
   ``rising_losses`` waits for a ``divergence_trial``, which finds out whether
   earlier weights do better. ``put_back`` repairs buffers and averages alone.
5. ``loaded_state``: look at the state with which a run starts;
   ``choose_resume`` leaves out a bad checkpoint.
6. ``lr_factor_hook``: resume at other learning rates.
"""
