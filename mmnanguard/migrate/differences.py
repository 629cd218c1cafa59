"""Differences between the values of configs."""

from typing import Mapping, Optional, Tuple

from .config_value import ConfigDict, ConfigValue, leave_out
from .render import Kept

__all__ = ['difference', 'is_writable', 'missing', 'opened', 'plain', 'same']

PLAIN = (str, int, float, bool, bytes, type(None), range)


def plain(value: ConfigValue) -> ConfigValue:
    """Return a value with its kept parts replaced by what they stand for."""
    if isinstance(value, Kept):
        kept = value.value
        if isinstance(kept, dict):
            kept = leave_out(kept, value.without)
        return plain(kept)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value))
    return value


def same(first: ConfigValue, second: ConfigValue) -> bool:
    """Whether two plain values are equal.

    Objects that a config makes anew each time it is read, such as functions,
    are equal if they are of one type.
    """
    if isinstance(first, dict) and isinstance(second, dict):
        return {*first} == {*second} and all(
            same(first[key], second[key]) for key in first
        )
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, PLAIN) or isinstance(second, PLAIN):
        # NaN equals itself here.
        return bool(first == second) or repr(first) == repr(second)
    return type(first) is type(second)


def is_writable(value: ConfigValue) -> bool:
    """Whether a plain value can be written as source."""
    if isinstance(value, dict):
        return all(map(is_writable, value.values()))
    if isinstance(value, (list, tuple, set)):
        return all(map(is_writable, value))
    return isinstance(value, PLAIN)


def difference(
    have: ConfigValue, want: ConfigValue
) -> Optional[Tuple[ConfigValue]]:
    """Return what MMEngine has to merge over a value to get another.

    Args:
        have: The plain value that there is.
        want: The value that there should be, with kept parts.

    Returns:
        The difference in a tuple, because it may be None; or None if the
        values are equal.
    """
    target = plain(want)
    if same(have, target):
        return None
    want = opened(want)
    if not (isinstance(have, dict) and isinstance(want, dict)):
        if isinstance(want, dict) and have is not None:
            # MMEngine refuses a dict over any other value.
            return (dict(_delete_=True, **want),)
        return (want,)
    if {*have} - {*want}:
        return (dict(_delete_=True, **want),)
    made: ConfigDict = {}
    for key, value in want.items():
        if key not in have:
            made[key] = value
            continue
        inner = difference(have[key], value)
        if inner is not None:
            (made[key],) = inner
    return (made,)


def missing(
    have: Mapping[str, ConfigValue], want: Mapping[str, ConfigValue]
) -> ConfigDict:
    """Return the entries of a dict that another lacks, at any depth."""
    made: ConfigDict = {}
    for key, value in want.items():
        value = opened(value)
        if key not in have:
            made[key] = value
        elif isinstance(value, dict) and isinstance(have[key], dict):
            inner = missing(have[key], value)
            if inner:
                made[key] = inner
    return made


def opened(value: ConfigValue) -> ConfigValue:
    """Return a kept dict as a dict of kept entries."""
    if isinstance(value, Kept) and isinstance(value.value, dict):
        made = {}
        for key, item in value.value.items():
            if key not in value.without:
                made[key] = Kept((*value.path, key), item, ('_delete_',))
        return made
    return value
