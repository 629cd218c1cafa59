"""Numbers that JSON does not have.

RFC 8259 has no NaN and no Infinity. In the files of this project they are the
strings 'nan', 'inf' and '-inf'.
"""

import json
import math
from typing import Any, Mapping

__all__ = ['parse_number', 'parse_numbers', 'to_json', 'to_jsonable']

# One NaN for all, so that records that were read from equal rows are equal.
NUMBERS = {'nan': math.nan, 'inf': math.inf, '-inf': -math.inf}


def to_json(row: Mapping[str, Any]) -> str:
    """Return a row as one line of strict JSON."""
    return json.dumps(to_jsonable(row), allow_nan=False, ensure_ascii=False)


def to_jsonable(value: Any) -> Any:
    """Return a copy with lists for tuples and strings for non-finite floats.

    Keys of mappings become strings, as JSON has no others.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(item) for item in value]
    return value


def parse_number(value: Any) -> Any:
    """Return the float that 'nan', 'inf' or '-inf' stands for.

    Any other value is returned as it is.
    """
    return NUMBERS.get(value, value) if isinstance(value, str) else value


def parse_numbers(value: Any) -> Any:
    """Return a copy in which :func:`parse_number` was applied throughout."""
    if isinstance(value, Mapping):
        return {key: parse_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [parse_numbers(item) for item in value]
    return parse_number(value)
