"""The reading of a line of ``events.jsonl`` as a row.

A line may come from another version, from a user's own hook or from an editor.
A value that the report could not use is removed from its row, so that an odd
row costs itself or a part of itself, and never the report.
"""

import json
import math
from typing import Any, Callable, Dict, List, Mapping, Optional

__all__ = ['Row', 'is_count', 'is_number', 'iter_of', 'parse']

Row = Dict[str, Any]
# Levels of lists and dicts in a row. The rows of this package have up to 5;
# functions that call themselves for each level reach Python's limit at 1,000.
MAX_DEPTH = 50
# The largest integer that JavaScript, and so the page, can represent.
MAX_COUNT = 2**53


def parse(line: bytes) -> Optional[Row]:
    """Return the row on a line; None if the line is no JSON object.

    Values of known keys that are of another type than the report needs are
    left out.
    """
    try:
        row = json.loads(line)
    # ValueError is the base of JSONDecodeError and UnicodeDecodeError.
    except (RecursionError, ValueError):
        return None
    # Counting is fast, and a row with that many brackets is rare.
    num_levels = line.count(b'[') + line.count(b'{')
    if not isinstance(row, dict) or (num_levels > MAX_DEPTH and is_deep(row)):
        return None
    for key, is_right in CHECKS.items():
        if row.get(key) is not None and not is_right(row[key]):
            del row[key]
    return row


def iter_of(row: Mapping[str, Any]) -> Optional[int]:
    """Return the iteration at which a row was written; None if unknown."""
    # The row that ends an alert has the iteration of the alert, too.
    iter_: Optional[int] = row.get('cleared') or row.get('iter')
    return iter_


def is_deep(row: Row) -> bool:
    """Whether lists and dicts are nested in more than ``MAX_DEPTH`` levels."""
    level: List[object] = [row]
    for _ in range(MAX_DEPTH):
        below: List[object] = []
        for value in level:
            if isinstance(value, dict):
                below += value.values()
            elif isinstance(value, list):
                below += value
        level = below
    return bool(level)


def is_count(value: object) -> bool:
    """Whether a value is an integer from 0 that fits the page's numbers."""
    return type(value) is int and 0 <= value <= MAX_COUNT


def is_text(value: object) -> bool:
    """Whether a value is a text."""
    return isinstance(value, str)


def is_name(value: object) -> bool:
    """Whether a value is a text or a number that stands for a name."""
    return isinstance(value, str) or is_count(value)


def are_names(value: object) -> bool:
    """Whether a value is a list of names."""
    return isinstance(value, list) and all(map(is_name, value))


def are_tensors(value: object) -> bool:
    """Whether a value is a list of dicts with names."""
    return isinstance(value, list) and all(map(is_tensor, value))


def is_tensor(value: object) -> bool:
    """Whether a value is a dict with a name."""
    return isinstance(value, Mapping) and is_text(value.get('name'))


def is_mapping(value: object) -> bool:
    """Whether a value is a dict."""
    return isinstance(value, Mapping)


def are_numbers(value: object) -> bool:
    """Whether a value is a list of numbers."""
    return isinstance(value, list) and all(map(is_number, value))


def is_scale(value: object) -> bool:
    """Whether a value is a loss scale, or a dict of one before and after."""
    # The row of a rollback has one scale.
    if isinstance(value, Mapping):
        return all(map(is_number, value.values()))
    return is_number(value)


def is_number(value: object) -> bool:
    """Whether a value is a number; texts stand for NaN and Inf."""
    if isinstance(value, str):
        return value in ('nan', 'inf', '-inf')
    if isinstance(value, float):
        # A bare NaN is no JSON, but Python reads it.
        return math.isfinite(value)
    return isinstance(value, int) and abs(value) <= MAX_COUNT


# The keys that the report reads without a record, in rows of any kind.
CHECKS: Dict[str, Callable[[object], bool]] = {
    'kind': is_text,
    'id': is_name,
    'run': is_text,
    'attempt': is_count,
    'iter': is_count,
    'max_iters': is_count,
    'epoch': is_count,
    'batch_idx': is_count,
    'since': is_count,
    'cleared': is_count,
    'consecutive_skips': is_count,
    'action': is_text,
    'cause': is_text,
    'samples': are_names,
    'params': are_tensors,
    'tensors': are_tensors,
    'module': is_text,
    'module_type': is_text,
    'loss': is_number,
    'grad_norm': is_number,
    'loss_scale': is_scale,
    'lr': are_numbers,
    'inputs': is_mapping,
    'micro_batches': is_mapping,
    'needs': are_names,
    'path': is_text,
    'checkpoint': is_text,
}
