"""The check of a dump file's content before it is used.

A file may be damaged, made by hand, or of another program. What is missing or
of another type is reported in one sentence, not by a traceback.
"""

from collections import abc
from pathlib import Path
from typing import Any, Dict, Mapping, Tuple, Union

from mmnanguard.core import GuardEvent, NanGuardError

__all__ = ['check_dump']

TypeOrTypes = Union[type, Tuple[type, ...]]
# The keys that a dump has, and the types of their values.
NEEDED: Dict[str, TypeOrTypes] = {
    'event': abc.Mapping,
    'rank': int,
    'world_size': int,
    'batches': list,
    'batch_idx': list,
    'rng': list,
    'is_exact': bool,
    'iter': list,
    'settings': abc.Mapping,
    'fp32_modules': list,
    'config': str,
    'versions': abc.Mapping,
}
# Keys that only some dumps have.
OPTIONAL: Dict[str, TypeOrTypes] = {
    'runtime_info': abc.Mapping,
    'weights': abc.Mapping,
}
# The types of the items of lists.
ITEMS = {'iter': int, 'fp32_modules': str}


def check_dump(dump: Mapping[str, Any], path: Path) -> None:
    """Check that a dump has all that a replay reads.

    Raises:
        NanGuardError: If something is missing or of another type.
    """
    for key in NEEDED:
        if key not in dump:
            raise damaged(path, f'it has no {key}')
    for key, types in {**NEEDED, **OPTIONAL}.items():
        if key in dump and not isinstance(dump[key], types):
            kind = type(dump[key]).__name__
            raise damaged(path, f'its {key} is of type {kind}')
    for key, item_type in ITEMS.items():
        for item in dump[key]:
            if not isinstance(item, item_type):
                kind = type(item).__name__
                raise damaged(path, f'its {key} holds a {kind}')
    try:
        GuardEvent.from_row(dump['event'])
    except ValueError as error:
        raise damaged(path, f'its event cannot be read: {error}') from error


def damaged(path: Path, reason: str) -> NanGuardError:
    """Return the error on a damaged dump."""
    return NanGuardError(f'{path} is damaged: {reason}.')
