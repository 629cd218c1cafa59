"""Checks of values that ``optim_wrapper.clip_grad`` may have."""

from ..checks import check_value, is_count, is_finite_number, is_number

__all__ = [
    'CLIP_GRAD',
    'check_clip',
    'check_count',
    'check_norm_type',
    'check_positive',
]

# A message names this key first, so that a user finds it in the config.
CLIP_GRAD = 'optim_wrapper.clip_grad'


def check_clip(is_right: bool, key: str, value: object, allowed: str) -> None:
    """Refuse a value of ``clip_grad``, as :func:`check_value` does."""
    check_value(is_right, f'{CLIP_GRAD}.{key}', value, allowed)


def check_positive(key: str, value: float, otherwise: str = '') -> None:
    """Refuse a value that is not a finite number above 0.

    Args:
        key: Key of ``clip_grad``.
        value: Value to be checked. A config may hold any type here.
        otherwise: Words for other allowed values, such as ', or None'.
    """
    # The type first: text cannot be compared with 0.
    is_right = is_finite_number(value) and value > 0
    check_clip(is_right, key, value, f'a finite number above 0{otherwise}')


def check_count(key: str, value: object, least: int) -> None:
    """Refuse a value that is not an integer of at least ``least``."""
    allowed = f'an integer of at least {least}'
    check_clip(is_count(value, least), key, value, allowed)


def check_norm_type(value: float) -> None:
    """Refuse a norm type that is not a number above 0."""
    # Inf is allowed. NaN is refused, as its comparison is False.
    check_clip(
        is_number(value) and value > 0,
        'norm_type',
        value,
        "above 0; 'inf' is the largest absolute element",
    )
