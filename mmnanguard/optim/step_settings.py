"""The settings of an optimizer that decide whether its step can make NaN."""

from operator import attrgetter
from typing import Any, Dict, List

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = [
    'DTYPE',
    'SCHEDULED',
    'as_list',
    'can_spoil',
    'describe',
    'is_on_device',
]

# Settings that schedules change, and that spoil weights if they are NaN or
# Inf. Other settings, such as Prodigy's growth_rate, may be Inf by design.
SCHEDULED = ('lr', 'weight_decay', 'momentum', 'betas')
DTYPE = attrgetter('dtype')
# Settings that an event shows.
SHOWN = ('eps', 'centered', *SCHEDULED, 'alpha', 'rho', 'maximize')


def describe(group: Dict[str, Any]) -> Dict[str, Any]:
    """Return the settings of a parameter group that an event shows."""
    settings: Dict[str, Any] = {}
    for key in SHOWN:
        if group.get(key) is True:
            settings[key] = True
            continue
        values = list(map(float, as_list(group.get(key))))
        # Zero switches most settings off; an eps of 0 is suspicious.
        if any(values) or (values and key in ('lr', 'eps')):
            settings[key] = values if len(values) > 1 else values[0]
    if torch.float16 in map(DTYPE, group['params']):
        settings['dtype'] = 'float16'
    return settings


def can_spoil(optimizer: Optimizer) -> bool:
    """Whether a step may make NaN or Inf of finite gradients.

    A step of PyTorch's optimizers does not, unless an argument makes it
    divide by 0 or take the root of a negative number, or weights are in
    float16.
    """
    is_known = type(optimizer).__module__.startswith('torch.optim.')
    hooks = getattr(optimizer, '_optimizer_step_pre_hooks', None)
    if not is_known or hooks:
        return True
    smallest = torch.finfo(torch.float32).tiny
    for group in optimizer.param_groups:
        if torch.float16 in map(DTYPE, group['params']):
            return True
        for eps in as_list(group.get('eps')):
            if eps < smallest:
                return True
        for beta in as_list(group.get('betas')):
            if beta >= 1:
                return True
        if group.get('centered'):
            return True
    return False


def as_list(setting: Any) -> List[Any]:
    """Return the numbers in a setting, without None and names."""
    values = setting if isinstance(setting, (tuple, list)) else [setting]
    return list(filter(is_number_or_tensor, values))


def is_number_or_tensor(value: object) -> bool:
    """Whether a setting is a number, perhaps in a tensor."""
    return isinstance(value, (float, int, Tensor))


def is_on_device(value: object) -> bool:
    """Whether reading a setting would sync a device."""
    return isinstance(value, Tensor) and value.device.type != 'cpu'
