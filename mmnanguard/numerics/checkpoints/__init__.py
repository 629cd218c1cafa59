"""What a run keeps on disk or from update to update: scan, audit and copy.

1. ``scan``: look at each tensor of a checkpoint.
2. ``checkpoint_file``: scan a file, and compare it with its neighbours.
3. ``saved_optimizer``: the optimizer states in a checkpoint.
   ``saved_averages``: the averages, which ``EMAHook`` saves crosswise.
4. ``load_plain``: ``torch.load`` that runs no code of the file
   (``stubs`` replaces the parts that another rank saved).
5. ``state_audit``: find non-finite values in all that a run keeps.
6. ``state_copy``: a copy of the trained state on the host.
"""
