"""Python source for the values of a config."""

from dataclasses import dataclass
from typing import Callable, List, Optional, Tuple

from .config_value import ConfigValue

__all__ = ['Kept', 'Piece', 'render']

WIDTH = 79


@dataclass(frozen=True)
class Kept:
    """A value of the old config that is carried over unchanged.

    Attributes:
        path: The name that the file assigns, then the keys below it.
        value: The value, for when its source cannot be moved.
        without: Keys of a dict that are left out.
    """

    path: Tuple[str, ...]
    value: ConfigValue
    without: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A part of the old source.

    Attributes:
        text: The source.
        indent: Indentation of its first line, in columns.
        column: Column at which it begins, from 0.
    """

    text: str
    indent: int
    column: int

    def at(self, indent: int, column: int) -> str:
        """Return the source with all its lines shifted to a new place.

        Args:
            indent: Indentation of the line that it will begin on.
            column: Column at which it will begin.
        """
        first, *rest = self.text.split('\n')
        # Shifting the lines of a multi-line string would change its value.
        if not rest or '"""' in self.text or "'''" in self.text:
            return self.text
        # After an opening bracket the lines hang from the indentation;
        # otherwise they are aligned with the first character.
        hangs = first.rstrip()[-1:] in ('(', '[', '{')
        shift = indent - self.indent if hangs else column - self.column
        moved = [
            ' ' * max(0, len(line) - len(line.lstrip()) + shift)
            + line.lstrip()
            for line in rest
        ]
        return '\n'.join([first, *moved])


def render(
    value: ConfigValue,
    find: Callable[[Kept], Optional[Piece]],
    indent: int = 0,
    column: int = 0,
) -> str:
    """Return a value's source, in lines of at most 79 columns if possible.

    Args:
        value: A plain value, or one that contains :class:`Kept`.
        find: Returns the source of a kept value, or None if there is none
            that can be moved.
        indent: Indentation of the line that the source will begin on.
        column: Column at which it will begin; a closing bracket or comma
            after it takes one more.
    """
    if isinstance(value, Kept):
        piece = find(value)
        if piece is not None:
            return piece.at(indent, column)
        kept = value.value
        if isinstance(kept, dict):
            kept = {k: v for k, v in kept.items() if k not in value.without}
        return render(kept, find, indent, column)
    if not isinstance(value, (dict, list, tuple)) or not value:
        return 'dict()' if value == {} else repr(value)
    # First try a single line; if it is too long, put an entry on each line.
    for one_line in (True, False):
        inner = indent if one_line else indent + 4
        start = column + 6 if one_line else inner
        parts = []
        for prefix, entry in prefixed_entries(value):
            at = start + len(prefix)
            parts.append(prefix + render(entry, find, inner, at))
            start = at + len(parts[-1]) + 2 if one_line else inner
        opening, closing = brackets(value)
        text = opening + ', '.join(parts) + closing
        if isinstance(value, tuple) and len(value) == 1:
            text = f'({parts[0]},)'
        if one_line and '\n' not in text and column + len(text) < WIDTH:
            return text
    pad = ' ' * indent
    lines = ''.join(f'{pad}    {part},\n' for part in parts)
    return f'{opening}\n{lines}{pad}{closing}'


def prefixed_entries(value: ConfigValue) -> List[Tuple[str, ConfigValue]]:
    """Return a container's items, with the source of the key before each."""
    if not isinstance(value, dict):
        return [('', item) for item in value]
    if are_names(value):
        return [(f'{key}=', item) for key, item in value.items()]
    return [(f'{key!r}: ', item) for key, item in value.items()]


def brackets(value: ConfigValue) -> Tuple[str, str]:
    """Return the opening and the closing bracket of a container."""
    if isinstance(value, dict):
        if are_names(value):
            return 'dict(', ')'
        return '{', '}'
    if isinstance(value, list):
        return '[', ']'
    return '(', ')'


def are_names(value: ConfigValue) -> bool:
    """Whether all keys can be keywords, as in ``dict(key=...)``."""
    return all(isinstance(key, str) and key.isidentifier() for key in value)
