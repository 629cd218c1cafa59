"""The settings of an optimizer that decide whether its step can make NaN."""

import math
from operator import attrgetter
from typing import Any, Dict, List

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = [
    'CHECKED',
    'DTYPE',
    'SPOILING',
    'as_list',
    'bad_numbers',
    'can_spoil',
    'describe',
    'is_on_device',
    'is_risky',
]

# Settings that spoil weights if they are NaN or Inf. Other settings, such as
# Prodigy's growth_rate, may be Inf by design.
CHECKED = ('lr', 'weight_decay', 'momentum', 'betas', 'eps', 'alpha', 'rho')
# Settings that decide whether a step can spoil weights.
SPOILING = ('eps', 'betas', 'alpha', 'rho', 'centered')
# Settings that an event shows.
SHOWN = ('eps', 'centered', *CHECKED[:4], 'alpha', 'rho', 'maximize')
SMALLEST = torch.finfo(torch.float32).tiny
DTYPE = attrgetter('dtype')


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

    A step of PyTorch's optimizers does not, unless :func:`is_risky` or
    weights are in float16.
    """
    if not is_known(optimizer) or is_risky(optimizer):
        return True
    for group in optimizer.param_groups:
        if torch.float16 in map(DTYPE, group['params']):
            return True
    return False


def is_risky(optimizer: Optimizer) -> bool:
    """Whether an optimizer of PyTorch is known to make NaN now and then.

    An argument makes it divide by 0 or take the root of a negative number.
    """
    groups = optimizer.param_groups
    return is_known(optimizer) and any(map(is_spoiling, groups))


def is_known(optimizer: Optimizer) -> bool:
    """Whether an optimizer is one of PyTorch."""
    return type(optimizer).__module__.startswith('torch.optim.')


def is_spoiling(group: Dict[str, Any]) -> bool:
    """Whether the arguments in a group may make NaN of finite gradients."""
    for eps in as_list(group.get('eps')):
        if eps < SMALLEST:
            return True
    for beta in as_list(group.get('betas')):
        if beta >= 1:
            return True
    for key in ('alpha', 'rho'):
        for share in as_list(group.get(key)):
            if share > 1:
                return True
    return bool(group.get('centered'))


def bad_numbers(optimizer: Optimizer) -> List[str]:
    """Return the numbers in parameter groups that are NaN or Inf, in words.

    Numbers in tensors are left out, since reading them may sync.
    """
    words: Dict[str, None] = {}
    for group in optimizer.param_groups:
        for key, value in group.items():
            if isinstance(value, float) and not math.isfinite(value):
                words[f'{key}={value:g}'] = None
    return list(words)


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
