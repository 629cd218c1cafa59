"""Let PyTorch load MMEngine's checkpoints with ``weights_only=True``.

PyTorch 2.6 and later refuse MMEngine's own checkpoints, because they hold
``HistoryBuffer`` objects, numpy arrays and, for a one-cycle schedule,
functions of its class (https://github.com/open-mmlab/mmengine/issues/1655).
With ``weights_only=False`` any code in a file would be executed; this module
allows only the types that such a checkpoint needs.
"""

import logging
from typing import Any, Callable, List, Tuple, Union

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

from mmnanguard.numerics.checkpoints.load_plain import (
    ALLOWED,
    HAS_ALLOW_LIST,
    SAFE_GLOBALS,
    name_of,
)

__all__ = ['allow_mmengine_checkpoints']


# A class or a function that a checkpoint names.
Named = Callable[..., Any]
# The functions that a one-cycle schedule has in its state.
ANNEALING = ('_annealing_cos', '_annealing_linear')


def restricted_getattr(owner: object, name: str) -> object:
    """Return an attribute that MMEngine's checkpoints need.

    It replaces ``getattr``, which such a checkpoint refers to and with which
    a malicious file could reach any function. Allowed are the public names
    of HistoryBuffer and those of :data:`ANNEALING`.

    Raises:
        ValueError: For any other attribute.
    """
    is_statistic = owner is HistoryBuffer and not name.startswith('_')
    if is_statistic or (owner is OneCycleParamScheduler and name in ANNEALING):
        attribute: object = getattr(owner, name)
        return attribute
    raise ValueError(
        f'this checkpoint asks for {name!r} of {owner!r}, which an MMEngine '
        'checkpoint has no need of; it was not loaded'
    )


def allow_mmengine_checkpoints() -> None:
    """Allow the types that MMEngine's checkpoints hold, for this process.

    PyTorch before 2.6 has no complete list of allowed types. With such a
    version, only the checkpoints that mmnanguard reads are restricted to the
    types; MMEngine itself loads without a list.
    """
    # Pickled arrays and scalars refer to these private functions of numpy.
    functions = {
        '_reconstruct': np.empty(0).__reduce__()[0],
        'scalar': np.float64(0).__reduce__()[0],
    }
    type_codes = np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + '?'
    allowed: List[Union[Named, Tuple[Named, str]]] = [
        HistoryBuffer,
        OneCycleParamScheduler,
        np.ndarray,
        np.dtype,
        *{type(np.dtype(code)) for code in type_codes},
        # Python 2 called the module __builtin__; pickle protocol 2 still does.
        (restricted_getattr, 'builtins.getattr'),
        (restricted_getattr, '__builtin__.getattr'),
    ]
    for name, function in functions.items():
        # numpy 2 moved numpy.core to numpy._core; files know either name.
        for module in ('numpy._core.multiarray', 'numpy.core.multiarray'):
            allowed.append((function, f'{module}.{name}'))
    if HAS_ALLOW_LIST:
        SAFE_GLOBALS[:] = allowed
        torch.serialization.add_safe_globals(allowed)
    else:
        for entry in allowed:
            if isinstance(entry, tuple):
                function, name = entry
                ALLOWED[name] = function
            else:
                ALLOWED[name_of(entry)] = entry
    print_log(
        "allowed MMEngine's HistoryBuffer and numpy arrays in checkpoints "
        'that load with weights_only=True',
        logger='current',
        level=logging.DEBUG,
    )
