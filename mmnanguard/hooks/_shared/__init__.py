"""Modules that the hooks of several rooms use; private.

1. ``find_guards``: the guarded wrappers of a runner.
2. ``roles``: base classes by which hooks find hooks of another room.
3. ``guard_listener``: the base of hooks that listen to the guard.
4. ``audit``: the result of an audit, which listeners receive.
5. ``patches``: changes of foreign objects, undone when training ends.
6. ``bare_model``: the user's model behind DDP and similar wrappers.
7. ``averages``: the hooks that average weights, and their models.
8. ``batch_facts``, ``batch_samples``: names, ranges and samples of a batch.
9. ``hook_arguments``: types of the arguments of a hook's methods.
10. ``halt``: the only way in which a hook ends training.
11. ``launch``: the start of a run, for commands that start it again.
12. ``compiled``: whether a model runs compiled code.
13. ``versions``: the versions of the software that a run depends on.
"""
