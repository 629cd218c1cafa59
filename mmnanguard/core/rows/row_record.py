"""The base class of the records, and how a row becomes a record.

A record is a frozen dataclass whose fields have the names and the order of
the row's keys. The type of a field determines how its value is read: a parser
is built from the type, and parsers of compound types call those of their
parts. Rows come from files that another version may have written, so parsers
check all that they read.
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

from .json_numbers import JsonObject, parse_number, parse_numbers

__all__ = ['SCHEMA', 'NewRow', 'Row', 'RowRecord']

# Grows only if the meaning of a key changes; new keys need no new number.
SCHEMA = 1
Row = JsonObject
# The row of a record, which the caller may change.
NewRow = Dict[str, Any]
# Returns the value of a field; raises ValueError if it is of another type.
Parser = Callable[[object], object]
R = TypeVar('R', bound='RowRecord')


@dataclass(frozen=True)
class RowRecord:
    """Base class of the records of ``events.jsonl``.

    Attributes:
        KIND: Value of the row's key 'kind'.
        NEEDED: Keys without which a row of this kind is meaningless, although
            their fields have defaults.
    """

    KIND: ClassVar[str]
    NEEDED: ClassVar[Tuple[str, ...]] = ()

    def to_row(self) -> NewRow:
        """Return the row, with the values as they are in the record."""
        # No asdict: it would copy large values such as samples and inputs.
        row: NewRow = {'schema': SCHEMA, 'kind': self.KIND}
        for field in fields(self):
            row[field.name] = getattr(self, field.name)
        return row

    @classmethod
    def from_row(cls: Type[R], row: Row) -> R:
        """Return the record of a row, which another version may have written.

        Unknown keys are ignored. If a key is missing, or its value is not of
        the field's type, the field gets its default.

        Raises:
            ValueError: If a key of ``NEEDED``, or of a field without a
                default, is missing or not of the field's type.
        """
        values = read_fields(cls, row)
        for name in cls.NEEDED:
            if name not in values:
                raise ValueError(f'{cls.KIND}: no {name}')
        return cls(**values)

    def replace(self: R, **changes: object) -> R:
        """Return a copy with other values in some fields."""
        return replace(self, **changes)

    def sentence(self) -> str:
        """Describe the event of the row in a sentence, without iteration."""
        raise NotImplementedError


class FieldParser(NamedTuple):
    """The way to read a field of a dataclass.

    Attributes:
        name: Name of the field and of the row's key.
        parse: The parser of the field's type.
        has_default: Whether the field may be left out.
    """

    name: str
    parse: Parser
    has_default: bool


# A report reads thousands of rows, and get_type_hints is slow.
@lru_cache(maxsize=None)
def parsers_of(record: type) -> Tuple[FieldParser, ...]:
    """Return the parsers of all fields of a dataclass."""
    hints = get_type_hints(record)
    parsers = []
    for field in fields(record):  # without ClassVars such as KIND
        has_default = (
            field.default is not MISSING
            or field.default_factory is not MISSING
        )
        parse = parser_of(hints[field.name])
        parsers.append(FieldParser(field.name, parse, has_default))
    return tuple(parsers)


def read_fields(record: type, row: object) -> Dict[str, object]:
    """Return those values of a dataclass's fields that a row has.

    Args:
        record: The dataclass.
        row: The row, or a part of it. A file may have any JSON value here.

    Raises:
        ValueError: If a field without a default is missing or unreadable.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f'no mapping: {row!r}')
    values: Dict[str, object] = {}
    for name, parse, has_default in parsers_of(record):
        if name not in row:
            if not has_default:
                raise ValueError(f'{record.__name__}: no {name}')
            continue
        try:
            values[name] = parse(row[name])
        except ValueError:
            # A field that another version writes in another form is lost, and
            # the rest of the row is still worth reading.
            if not has_default:
                raise
    return values


def parser_of(hint: Any) -> Parser:
    """Return the parser of a type.

    Args:
        hint: The type of a field, as ``get_type_hints`` returns it.
    """
    origin, args = get_origin(hint), get_args(hint)
    # Optional[X] is Union[X, None]; records have no other unions.
    if origin is Union:
        return optional(parser_of(args[0]))
    if origin is tuple:
        return tuple_of(parser_of(args[0]))
    if origin is collections.abc.Mapping:
        return mapping_of(parser_of(args[1]))
    if hint is Any:
        return parse_numbers
    kind: type = hint
    # An enum is a parser: Enum(value) raises ValueError for an unknown value.
    if issubclass(kind, Enum):
        return kind
    if is_dataclass(kind):
        return dataclass_of(kind)
    return SCALARS[kind]


def dataclass_of(record: type) -> Parser:
    """Return the parser of a dataclass, which is a dict in a row."""

    def parse_dataclass(value: object) -> object:
        return record(**read_fields(record, value))

    return parse_dataclass


def optional(parse: Parser) -> Parser:
    """Return the parser of None, or of a value that ``parse`` reads."""

    def parse_optional(value: object) -> object:
        if value is None:
            return None
        return parse(value)

    return parse_optional


def tuple_of(parse: Parser) -> Parser:
    """Return the parser of a list of values that ``parse`` reads."""

    def parse_tuple(value: object) -> Tuple[object, ...]:
        # A row that a hook received has tuples; a row of a file has lists.
        if not isinstance(value, (list, tuple)):
            raise ValueError(f'no list: {value!r}')
        return tuple(map(parse, value))

    return parse_tuple


def mapping_of(parse: Parser) -> Parser:
    """Return the parser of a dict with values that ``parse`` reads."""

    def parse_mapping(value: object) -> Dict[str, object]:
        if not isinstance(value, Mapping):
            raise ValueError(f'no mapping: {value!r}')
        return {str(key): parse(item) for key, item in value.items()}

    return parse_mapping


def parse_float(value: object) -> float:
    """Return the number; 'nan', 'inf' and '-inf' count.

    Raises:
        ValueError: If the value is no number.
    """
    number = parse_number(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise ValueError(f'no number: {value!r}')
    try:
        return float(number)
    except OverflowError as error:  # JSON has integers of any size
        raise ValueError(str(error)) from error


def parse_int(value: object) -> int:
    """Return the integer.

    Raises:
        ValueError: If the value is no integer, or a bool.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f'no integer: {value!r}')
    return value


def parse_bool(value: object) -> bool:
    """Return the bool.

    Raises:
        ValueError: If the value is no bool. 0 and 1 are refused, too.
    """
    if not isinstance(value, bool):
        raise ValueError(f'no bool: {value!r}')
    return value


def parse_str(value: object) -> str:
    """Return the text; numbers become text.

    Raises:
        ValueError: If the value is neither text nor a number.
    """
    # Names of samples may be numbers in rows of other writers.
    if not isinstance(value, (str, int, float)):
        raise ValueError(f'no text: {value!r}')
    return str(value)


SCALARS: Dict[type, Parser] = {
    bool: parse_bool,
    float: parse_float,
    int: parse_int,
    str: parse_str,
}
