"""Checkpoints and the state of a run: scan, audit and copy.

1. ``scan``: check each tensor of a loaded checkpoint.
2. ``checkpoint_file``: scan a file, and compare it with its neighbours.
   ``find_clean``: the newest clean file among many.
3. ``saved_optimizer``: the optimizer states in a checkpoint.
   ``saved_averages``: the averaged weights, which ``EMAHook`` exchanges with
   the trained weights before MMEngine saves.
4. ``load_plain``: ``torch.load`` that runs no code of the file
   (``stubs`` replaces the objects that only another rank can load).
5. ``state_audit``: find non-finite values in the live state of a run.
6. ``state_copy``: a copy of the trained state on the host; it consists of
   ``host_tensor`` and ``optimizer_copy``.
"""
