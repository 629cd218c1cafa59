"""A guard for MMEngine: an update either commits or leaves no trace.

The way of a batch through a guarded iteration::

    for batch in loader:                              # MMEngine's train loop
        hooks.before_train_iter
        with wrapper.optim_context(model):            # 1 begin: copy
            losses = model(batch)                     # 2 inputs, forward
        wrapper.update_params(loss)
            backward                                  # 3 loss, 4 backward
            step -> optim/guarded_step.py             # 5 observe, 6 agree,
                                                      # 7 decide, 8 blame,
                                                      # 9 apply or restore,
                                                      # 10 move the scale
        hooks.after_train_iter
            NanGuardHook                              # 11 report
                -> after_guard_event                  # 12 consequences
"""

import sys
from importlib.util import find_spec

from .version import __version__

__all__ = ['__version__']

# `python -m mmnanguard doctor` looks at the installed versions first, and
# imports the rest itself. While Python searches a module, argv begins with -m.
is_doctor = sys.argv[:2] == ['-m', 'doctor'] and (
    'mmnanguard' in getattr(sys, 'orig_argv', ['mmnanguard'])
)

# ``core`` and ``report`` read events wherever Python runs; only the guard
# itself needs PyTorch and MMEngine.
if find_spec('torch') and find_spec('mmengine') and not is_doctor:
    import mmengine
    import torch

    from .check_stack import check_stack

    # The check comes before the imports below, which may use names that an
    # unsupported version does not have.
    check_stack(torch, mmengine)

    from .numerics import watch
    from .optim import apply_guard
    from .registry import register_bare_names, register_configs

    register_bare_names()
    register_configs()
    __all__ += ['apply_guard', 'watch']
