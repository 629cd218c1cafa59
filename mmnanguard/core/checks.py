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


def is_number(value: Any) -> bool:
    """True and False are none; NaN and Inf are."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_finite_number(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def is_count(value: Any, least: int) -> bool:
    """An integer of at least ``least``; True and False are none."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return is_int and value >= least


def check_value(is_right: bool, key: str, value: Any, allowed: str) -> None:
    """Refuse a value that a config has.

    Args:
        is_right: May it pass?
        key: Where it stands, such as 'RollbackHook.interval'.
        value: What it is.
        allowed: What it must be.

    Raises:
        GuardConfigError: If it may not.
    """
    if not is_right:
        raise GuardConfigError(f'{key} is {value!r}: it must be {allowed}.')


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question for a message, or nothing if no name is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean '{near[0]}'? " if near else ''


def check_keys(
    given: Iterable[str], allowed: Iterable[str], where: str
) -> None:
    """Refuse the first key that is not allowed and name the nearest one.

    Raises:
        GuardConfigError: If ``given`` has a key that ``allowed`` lacks.
    """
    allowed = sorted(allowed)
    for key in given:
        if key not in allowed:
            hint = did_you_mean(str(key), allowed)
            raise GuardConfigError(
                f"{where} has an unknown key '{key}': {hint}"
                f'Allowed keys: {", ".join(allowed)}.'
            )
