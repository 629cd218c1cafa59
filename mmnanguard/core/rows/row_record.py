"""The base class of the records, and how a row becomes a record.

A record is a frozen dataclass whose fields have the names and the order of
the row's keys. The type of a field says how its value is read.
"""

import collections.abc
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from enum import Enum
from functools import lru_cache
from typing import (
    Any,
    Callable,
    ClassVar,
    Dict,
    Mapping,
    NamedTuple,
    Tuple,
    Type,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from .json_numbers import parse_number, parse_numbers

__all__ = ['SCHEMA', 'Row', 'RowRecord']

SCHEMA = 1
Row = Mapping[str, Any]
Parser = Callable[[Any], Any]  # raises ValueError
R = TypeVar('R', bound='RowRecord')


@dataclass(frozen=True)
class RowRecord:
    """Base class of the records of ``events.jsonl``.

    Attributes:
        KIND: Value of the row's key 'kind'.
        NEEDED: Keys without which a row of this kind says nothing.
    """

    KIND: ClassVar[str]
    NEEDED: ClassVar[Tuple[str, ...]] = ()

    def to_row(self) -> Dict[str, Any]:
        """Return the row, with the values as they are in the record."""
        row: Dict[str, Any] = {'schema': SCHEMA, 'kind': self.KIND}
        for field in fields(self):
            row[field.name] = getattr(self, field.name)
        return row

    @classmethod
    def from_row(cls: Type[R], row: Row) -> R:
        """Return the record of a row, also of one from another version.

        Keys that are not known are ignored. A key that is missing, or whose
        value is not of the field's type, gets the field's default.

        Raises:
            ValueError: If a key of ``NEEDED``, or of a field without a
                default, is missing or not of the field's type.
        """
        values = read_fields(cls, row)
        missing = [name for name in cls.NEEDED if name not in values]
        if missing:
            raise ValueError(f'{cls.KIND}: no {", ".join(missing)}')
        return cls(**values)

    def replace(self: R, **changes: Any) -> R:
        """Return a copy with other values in some fields."""
        return replace(self, **changes)

    def sentence(self) -> str:
        """Return what happened, without the iteration."""
        raise NotImplementedError


class FieldParser(NamedTuple):
    """The way to read one field of a dataclass."""

    name: str
    parse: Parser
    has_default: bool


@lru_cache(maxsize=None)
def parsers_of(record: type) -> Tuple[FieldParser, ...]:
    """Return how the fields of a dataclass are read."""
    hints = get_type_hints(record)
    parsers = []
    for field in fields(record):
        has_default = (
            field.default is not MISSING
            or field.default_factory is not MISSING
        )
        parse = parser_of(hints[field.name])
        parsers.append(FieldParser(field.name, parse, has_default))
    return tuple(parsers)


def read_fields(record: type, row: Any) -> Dict[str, Any]:
    """Return the values of a dataclass's fields that a row has.

    Raises:
        ValueError: If a field without a default is missing or unreadable.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f'no mapping: {row!r}')
    values: Dict[str, Any] = {}
    for name, parse, has_default in parsers_of(record):
        if name not in row:
            if not has_default:
                raise ValueError(f'{record.__name__}: no {name}')
            continue
        try:
            values[name] = parse(row[name])
        except ValueError:
            if not has_default:
                raise
    return values


def parser_of(hint: Any) -> Parser:
    """Return the function that reads a value of a type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Union:  # Optional
        return optional(parser_of(args[0]))
    if origin is tuple:
        return tuple_of(parser_of(args[0]))
    if origin is collections.abc.Mapping:
        return mapping_of(parser_of(args[1]))
    if hint is Any:
        return parse_numbers
    if issubclass(hint, Enum):
        enum: Type[Enum] = hint
        return enum
    if is_dataclass(hint):
        return dataclass_of(hint)
    return SCALARS[hint]


def dataclass_of(record: Any) -> Parser:
    """Return the function that reads a dataclass from a mapping."""
    return lambda value: record(**read_fields(record, value))


def optional(parse: Parser) -> Parser:
    """Return the function that reads None or a value."""
    return lambda value: None if value is None else parse(value)


def tuple_of(parse: Parser) -> Parser:
    """Return the function that reads a list of such values."""

    def parse_tuple(value: Any) -> Tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f'no list: {value!r}')
        return tuple(map(parse, value))

    return parse_tuple


def mapping_of(parse: Parser) -> Parser:
    """Return the function that reads a mapping to such values."""

    def parse_mapping(value: Any) -> Dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ValueError(f'no mapping: {value!r}')
        return {str(key): parse(item) for key, item in value.items()}

    return parse_mapping


def parse_float(value: Any) -> float:
    number = parse_number(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise ValueError(f'no number: {value!r}')
    try:
        return float(number)
    except OverflowError as error:  # JSON has integers of any size
        raise ValueError(str(error)) from error


def parse_int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f'no integer: {value!r}')
    return value


def parse_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f'no bool: {value!r}')
    return value


def parse_str(value: Any) -> str:
    if not isinstance(value, (str, int, float)):
        raise ValueError(f'no text: {value!r}')
    return str(value)


SCALARS: Dict[type, Parser] = {
    bool: parse_bool,
    float: parse_float,
    int: parse_int,
    str: parse_str,
}
