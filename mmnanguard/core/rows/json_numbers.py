"""Numbers that JSON does not have.

RFC 8259 has no NaN and no Infinity. In the files of this project they are the
strings 'nan', 'inf' and '-inf'.
"""

import json
import math
from typing import Any, Mapping

from mmnanguard._support.escape import escape

__all__ = [
    'JsonObject',
    'parse_number',
    'parse_numbers',
    'to_json',
    'to_jsonable',
]

# A dict in a row, as JSON reads it. Its values may be of any JSON type.
JsonObject = Mapping[str, Any]
# One NaN for all, so that records that were read from equal rows are equal:
# a tuple is equal to another tuple with the same NaN object.
NUMBERS = {'nan': math.nan, 'inf': math.inf, '-inf': -math.inf}


def to_json(row: Mapping[str, object]) -> str:
    """Return a row as one line of strict JSON."""
    # allow_nan=False: Python would write NaN, which jq and browsers refuse.
    # ensure_ascii=False: names of files stay readable.
    text = json.dumps(to_jsonable(row), allow_nan=False, ensure_ascii=False)
    if text.isprintable():
        return text
    # A user may print the line, so that no character may steer the terminal.
    # JSON escapes those below 0x20 itself. Only strings can have others, and
    # among them are the surrogates of names that are no UTF-8.
    return ''.join(map(escape_in_json, text))


def escape_in_json(character: str) -> str:
    """Return a character, as JSON's escape if it cannot be shown."""
    if escape(character) == character:
        return character
    return json.dumps(character)[1:-1]


def to_jsonable(value: object) -> Any:
    """Return a copy with lists for tuples and strings for non-finite floats.

    Keys of mappings become strings, because JSON has no other keys.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    # Not any iterable: a string is iterable, too.
    if isinstance(value, (list, tuple)):
        return list(map(to_jsonable, value))
    return value


def parse_number(value: object) -> Any:
    """Return the float that 'nan', 'inf' or '-inf' stands for.

    Any other value is returned as it is.
    """
    # Only strings: a list has no hash to look it up by.
    if isinstance(value, str):
        return NUMBERS.get(value, value)
    return value


def parse_numbers(value: object) -> object:
    """Return a copy in which :func:`parse_number` was applied throughout."""
    if isinstance(value, Mapping):
        return {key: parse_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return list(map(parse_numbers, value))
    return parse_number(value)
