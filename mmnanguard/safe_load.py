"""Let PyTorch load MMEngine's checkpoints with ``weights_only=True``.

PyTorch 2.6 and later refuse MMEngine's own checkpoints (mmengine issue 1655),
because they hold ``HistoryBuffer`` objects, numpy arrays and, of a one-cycle
schedule, functions of its class. Going back to
``weights_only=False`` would run whatever code a file brings along; this is
the narrow list of what such a checkpoint really needs.
"""

import logging
from typing import Any, Callable, List, Tuple, Union

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

from mmnanguard.numerics.checkpoints.load_plain import ALLOWED, HAS_ALLOW_LIST

__all__ = ['allow_mmengine_checkpoints']


# A class or function, and its name in files where that differs.
Allowed = Union[Callable[..., Any], Tuple[Callable[..., Any], str]]
# What a one-cycle schedule has in its state.
ANNEALING = ('_annealing_cos', '_annealing_linear')


def restricted_getattr(owner: Any, name: str) -> Any:
    """Stands for ``getattr`` in a checkpoint, and answers for nothing but
    HistoryBuffer's public names and those of :data:`ANNEALING`: the real one
    would open every door.
    """
    is_statistic = owner is HistoryBuffer and not name.startswith('_')
    if is_statistic or (owner is OneCycleParamScheduler and name in ANNEALING):
        return getattr(owner, name)
    raise ValueError(
        f'this checkpoint asks for {name!r} of {owner!r}, which an MMEngine '
        'checkpoint has no need of; it was not loaded'
    )


def name_of(kind: Callable[..., Any]) -> str:
    return f'{kind.__module__}.{kind.__qualname__}'


def allow_mmengine_checkpoints() -> None:
    """Allow-list what MMEngine's checkpoints hold, for this process.

    Before PyTorch 2.6, which has no such list, for mmnanguard alone: MMEngine
    there loads without one.
    """
    functions = {
        '_reconstruct': np.empty(0).__reduce__()[0],
        'scalar': np.float64(0).__reduce__()[0],
    }
    allowed: List[Allowed] = [
        HistoryBuffer,
        OneCycleParamScheduler,
        np.ndarray,
        np.dtype,
        *{
            type(np.dtype(kind))
            for kind in np.typecodes['AllInteger']
            + np.typecodes['AllFloat']
            + '?'
        },
        (restricted_getattr, 'builtins.getattr'),
        (restricted_getattr, '__builtin__.getattr'),
    ]
    for name, function in functions.items():
        # numpy 2 moved numpy.core to numpy._core; files know either name.
        for module in ('numpy._core.multiarray', 'numpy.core.multiarray'):
            allowed.append((function, f'{module}.{name}'))
    if HAS_ALLOW_LIST:
        torch.serialization.add_safe_globals(allowed)
    else:
        for entry in allowed:
            if isinstance(entry, tuple):
                value, name = entry
            else:
                value, name = entry, name_of(entry)
            ALLOWED[name] = value
    print_log(
        "allowed MMEngine's HistoryBuffer and numpy arrays in checkpoints "
        'that load with weights_only=True',
        logger='current',
        level=logging.DEBUG,
    )
