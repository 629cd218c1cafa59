"""Checks of the values and keys that a user writes in a config."""

import difflib
import math
from typing import Any, Iterable

from .errors import GuardConfigError

__all__ = [
    'check_keys',
    'check_value',
    'did_you_mean',
    'is_count',
    'is_finite_number',
    'is_number',
]


def is_number(value: object) -> bool:
    """Whether the value is an int or float, including NaN and Inf.

    Bools do not count.
    """
    # bool is a subclass of int.
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_finite_number(value: Any) -> bool:
    """Whether the value is an int or float other than NaN and Inf."""
    return is_number(value) and math.isfinite(value)


def is_count(value: object, least: int) -> bool:
    """Whether the value is an int, but no bool, of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    return value >= least


def check_value(is_right: bool, key: str, value: object, allowed: str) -> None:
    """Refuse a value of a config unless it is allowed.

    Args:
        is_right: Whether the value is allowed.
        key: The key of the value, such as 'RollbackHook.interval'.
        value: The value, for the message.
        allowed: A description of the allowed values.

    Raises:
        GuardConfigError: If ``is_right`` is False.
    """
    if not is_right:
        raise GuardConfigError(f'{key} is {value!r}: it must be {allowed}.')


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint at the nearest known name, or '' if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    if not near:
        return ''
    return f"did you mean '{near[0]}'? "


def check_keys(
    given: Iterable[str], allowed: Iterable[str], where: str
) -> None:
    """Refuse the first key that is not allowed and name the nearest key.

    Args:
        given: The keys that a user wrote.
        allowed: The keys that exist.
        where: The place of the keys in the config, such as
            'optim_wrapper.guard'.

    Raises:
        GuardConfigError: If ``given`` has a key that ``allowed`` lacks.
    """
    # A list, because ``allowed`` may be a generator and is read repeatedly.
    allowed = sorted(allowed)
    for key in given:
        if key not in allowed:
            # A dict written by hand may have keys of any type.
            hint = did_you_mean(str(key), allowed)
            raise GuardConfigError(
                f"{where} has an unknown key '{key}': {hint}"
                f'Allowed keys: {", ".join(allowed)}.'
            )
