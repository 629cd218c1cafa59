"""Modules that the hooks of several rooms use; private.

- ``find_guards``: the guarded wrappers of a runner.
- ``roles``: base classes by which hooks find one another.
- ``guard_listener``: the base of hooks that listen to the guard.
- ``audit``: the result of an audit, which listeners receive.
- ``patches``: changes of foreign objects, undone when training ends.
- ``bare_model``: the model behind DDP and the like.
- ``averages``: the hooks that average weights, and their models.
- ``batch_facts``, ``batch_samples``: names, ranges and samples of a batch.
- ``hook_arguments``: types of what a hook is called with.
- ``halt``: the one way to end training.
- ``versions``: the versions that a run depends on.
"""
