"""Modules that the hooks of several rooms use; private.

- ``find_guards``: the guarded wrappers and the hooks of a runner.
- ``averages``: the hooks that average weights, and their models.
- ``batch_facts``, ``batch_samples``: names, ranges and samples of a batch.
- ``guard_listener``: the base of hooks that listen to the guard.
- ``audit``: the result of an audit, which listeners receive.
- ``halt``: the one way to end training.
- ``versions``: the versions that a run depends on.
"""
