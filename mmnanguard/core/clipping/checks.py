"""Checks of values that ``optim_wrapper.clip_grad`` can hold."""

from typing import Any

from ..checks import check_value, is_count, is_finite_number, is_number

__all__ = [
    'CLIP_GRAD',
    'check_clip',
    'check_count',
    'check_norm_type',
    'check_positive',
]

CLIP_GRAD = 'optim_wrapper.clip_grad'


def check_clip(is_right: bool, key: str, value: Any, allowed: str) -> None:
    """See :func:`check_value`; ``key`` is one of ``clip_grad``."""
    check_value(is_right, f'{CLIP_GRAD}.{key}', value, allowed)


def check_positive(key: str, value: Any, otherwise: str = '') -> None:
    is_right = is_finite_number(value) and value > 0
    check_clip(is_right, key, value, f'a finite number above 0{otherwise}')


def check_count(key: str, value: Any, least: int) -> None:
    allowed = f'an integer of at least {least}'
    check_clip(is_count(value, least), key, value, allowed)


def check_norm_type(value: Any) -> None:
    check_clip(
        is_number(value) and value > 0,
        'norm_type',
        value,
        "above 0; 'inf' is the largest absolute element",
    )
