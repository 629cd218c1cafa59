"""The measured parts of a run: modules, weights, rates and loss scales."""

import math
from typing import Any, Dict, List, Mapping, Optional, Set, Tuple, Union

from mmengine.runner import Runner
from torch import Tensor, nn

from mmnanguard.numerics.guard_protocol import GuardProtocol
from mmnanguard.numerics.update.blame import plain_name
from mmnanguard.numerics.update.loss_scale import GuardedGradScaler

from .._shared.bare_model import bare_model
from .._shared.find_guards import find_wrappers

__all__ = [
    'common_scalers',
    'find_parts',
    'guarded_scale',
    'highest_lr',
    'is_adaptive',
    'loss_scale_of',
]

# The optimizers whose updates are proportional to the gradient.
PROPORTIONAL = ('SGD', 'LARS', 'LBFGS')


def find_parts(
    runner: Runner,
) -> Tuple[Dict[str, nn.Module], Dict[str, nn.Parameter]]:
    """Return all modules but the model itself, and their trained weights.

    Both are by name. The weights are the parameters of modules that have the
    name 'weight', the matrices among them; one that is shared comes once.
    """
    trained: Set[int] = set()
    for wrapper in find_wrappers(runner).values():
        for group in wrapper.optimizer.param_groups:
            trained.update(map(id, group['params']))
    modules, weights = {}, {}
    for wrapped_name, module in bare_model(runner.model).named_modules():
        # A wrapper such as FSDP's has the name of the module inside of it,
        # which comes later.
        name = plain_name(wrapped_name)
        modules[name] = module
        weight = module._parameters.get('weight')
        if weight is not None and id(weight) in trained:
            trained.remove(id(weight))
            weights[f'{name}.weight'.lstrip('.')] = weight
    modules.pop('', None)
    return modules, weights


def highest_lr(runner: Runner) -> float:
    """Return the highest learning rate; NaN if it is on a device only."""
    rates: List[float] = []
    for wrapper in find_wrappers(runner).values():
        for group in wrapper.optimizer.param_groups:
            if not isinstance(group['lr'], Tensor):
                rates.append(group['lr'])
    return max(rates, default=math.nan)


def is_adaptive(runner: Runner) -> bool:
    """Whether an optimizer divides by the size of the gradient."""
    return any(
        not any(
            kind in type(wrapper.optimizer).__name__ for kind in PROPORTIONAL
        )
        for wrapper in find_wrappers(runner).values()
    )


def guarded_scale(guards: Mapping[str, GuardProtocol]) -> Optional[float]:
    """Return the loss scale of a guarded wrapper; None without one."""
    for guard in guards.values():
        if guard.scaler.is_enabled():
            return guard.scaler.get_scale()
    return None


def common_scalers(
    guards: Mapping[str, GuardProtocol],
) -> List[GuardedGradScaler]:
    """Return the loss scalers of guarded wrappers; none if scales differ.

    The gradients of a sample are read with one loss scale.
    """
    scalers = [g.scaler for g in guards.values() if g.scaler.is_enabled()]
    if len({scaler.get_scale() for scaler in scalers}) > 1:
        return []
    return scalers


def loss_scale_of(
    runner: Runner, guards: Mapping[str, GuardProtocol]
) -> Union[float, Tensor, None]:
    """Return the loss scale that is in force. No sync.

    Returns:
        The scale; None without one, and if those of guarded wrappers differ.
    """
    if guarded_scale(guards) is not None:
        scalers = common_scalers(guards)
        return scalers[0].get_scale() if scalers else None
    for wrapper in find_wrappers(runner).values():
        scaler: Any = getattr(wrapper, 'loss_scaler', None)
        if scaler is not None and scaler.is_enabled():
            # MMEngine's own wrapper has PyTorch's scaler, whose scale is on
            # the device from the first update on.
            if scaler._scale is None:
                return float(scaler._init_scale)
            scale: Tensor = scaler._scale.clone()
            return scale
    return None
