"""The doctor: findings on a run that has not begun yet.

Each module looks at one thing and returns findings; tools/doctor.py calls
them and prints. Read in this order:

1. ``finding``: a finding, and the lines that show it.
2. ``versions``: the installed packages, of which none is imported.
3. ``reading``: why a config cannot be read, and what to do.
4. ``classes``: the classes that a config names, from MMEngine's registries.
5. ``wrappers``: the guarded optimizers, and those that are not.
6. ``hooks``: the hooks of the guard, and hooks of others that clash with it.
7. ``own_code``: what a model, a loop or a hook does past the guard.
8. ``data``: the training data, and its first samples.
9. ``checkpoints``: the checkpoint that training will begin with.
"""
