"""Ring 3, inside the iteration: the wrappers and the guarded step."""

from .apply_guard import apply_guard
from .guard import Guard
from .guarded_step import guarded_step
from .nan_guard_amp_optim_wrapper import NanGuardAmpOptimWrapper
from .nan_guard_optim_wrapper import NanGuardOptimWrapper

__all__ = [
    'Guard',
    'NanGuardAmpOptimWrapper',
    'NanGuardOptimWrapper',
    'apply_guard',
    'guarded_step',
]
