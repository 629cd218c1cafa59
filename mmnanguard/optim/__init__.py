"""Ring 3, inside the iteration: the wrappers and the guarded step.

1. ``guarded_wrapper``: the calls of MMEngine that the guard needs to see;
   ``nan_guard_optim_wrapper`` and ``nan_guard_amp_optim_wrapper`` are the
   registered forms.
   ``nan_guard_deepspeed_optim_wrapper`` guards an engine of DeepSpeed, whose
   optimizers the folder ``deepspeed`` knows.
2. ``guarded_step``: the end of a window, from observation to report.
3. ``window``: the state of one window; ``micro_batches`` judges its parts,
   as soon as ``lost_windows`` finds that worthwhile.
4. ``guard``: the state that is kept as long as the optimizer.
5. ``step_check``: undoes a step that has made NaN; ``step_settings`` tells
   which settings of an optimizer can. ``empty_buffers``: buffers that rejected
   updates may fill.
6. ``guarded_params``, ``streak``, ``coverage_warnings``, ``clip_grad``,
   ``resolve_clip_names``, ``autocast_dtype``, ``refusals``: parts of the guard
   and of the wrappers.
7. ``apply_guard``: puts the wrappers into a config; ``stopping_hooks`` takes
   out hooks that would end a guarded run.
"""

from .apply_guard import apply_guard
from .guard import Guard
from .guarded_step import guarded_step
from .nan_guard_amp_optim_wrapper import NanGuardAmpOptimWrapper
from .nan_guard_deepspeed_optim_wrapper import NanGuardDeepSpeedOptimWrapper
from .nan_guard_optim_wrapper import NanGuardOptimWrapper

__all__ = [
    'Guard',
    'NanGuardAmpOptimWrapper',
    'NanGuardDeepSpeedOptimWrapper',
    'NanGuardOptimWrapper',
    'apply_guard',
    'guarded_step',
]
