"""Checks of values that ``optim_wrapper.clip_grad`` can hold."""

import math
from typing import Any

from .errors import GuardConfigError

__all__ = [
    'CLIP_GRAD',
    'check_clip',
    'check_count',
    'check_norm_type',
    'check_positive',
    'is_number',
]

CLIP_GRAD = 'optim_wrapper.clip_grad'


def check_clip(is_right: bool, key: str, value: Any, allowed: str) -> None:
    """Refuse a value.

    Args:
        is_right: May it pass?
        key: Of ``clip_grad``.
        value: What it is.
        allowed: What it must be.

    Raises:
        GuardConfigError: If it may not.
    """
    if not is_right:
        raise GuardConfigError(
            f'{CLIP_GRAD}.{key} is {value!r}: it must be {allowed}.'
        )


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_positive(key: str, value: Any, otherwise: str = '') -> None:
    is_right = is_number(value) and 0 < value < math.inf
    check_clip(is_right, key, value, f'a finite number above 0{otherwise}')


def check_count(key: str, value: Any, least: int) -> None:
    is_count = isinstance(value, int) and not isinstance(value, bool)
    allowed = f'an integer of at least {least}'
    check_clip(is_count and value >= least, key, value, allowed)


def check_norm_type(value: Any) -> None:
    check_clip(
        is_number(value) and value > 0,
        'norm_type',
        value,
        "above 0; 'inf' is the largest absolute element",
    )
