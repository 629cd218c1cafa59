"""Values as the source of a config."""

from dataclasses import dataclass
from typing import Any, Callable, Optional, Tuple

__all__ = ['Kept', 'Piece', 'render']

WIDTH = 79


@dataclass(frozen=True)
class Kept:
    """A value of the old config that goes on as it is.

    Attributes:
        path: Where it stands: a name of the file, then keys.
        value: What it is.
        without: Keys of a dict that are left out.
    """

    path: Tuple[str, ...]
    value: Any
    without: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A part of the old source.

    Attributes:
        indent: Of the line that it begins on, in columns.
        column: Where it begins.
    """

    text: str
    indent: int
    column: int

    def at(self, indent: int, column: int) -> str:
        """Moved, if it has several lines, as a whole."""
        first, *rest = self.text.split('\n')
        if not rest or '"""' in self.text or "'''" in self.text:
            return self.text
        hangs = first.rstrip()[-1:] in ('(', '[', '{')
        shift = indent - self.indent if hangs else column - self.column
        moved = [
            ' ' * max(0, len(line) - len(line.lstrip()) + shift)
            + line.lstrip()
            for line in rest
        ]
        return '\n'.join([first, *moved])


def render(
    value: Any,
    find: Callable[[Kept], Optional[Piece]],
    indent: int = 0,
    column: int = 0,
) -> str:
    """As source, in lines of at most 79 columns where that can be.

    Args:
        value: Plain, or with :class:`Kept` in it.
        find: The source of what is kept; None if it has none that could be
            moved.
        indent: Of the line that it will begin on.
        column: Where it will begin; what follows takes one more.
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
    for one_line in (True, False):
        inner = indent if one_line else indent + 4
        start = column + 6 if one_line else inner
        parts = []
        for prefix, each in entries(value):
            at = start + len(prefix)
            parts.append(prefix + render(each, find, inner, at))
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


def entries(value: Any) -> Any:
    if not isinstance(value, dict):
        return [('', each) for each in value]
    if are_names(value):
        return [(f'{key}=', each) for key, each in value.items()]
    return [(f'{key!r}: ', each) for key, each in value.items()]


def brackets(value: Any) -> Tuple[str, str]:
    if isinstance(value, dict):
        return ('dict(', ')') if are_names(value) else ('{', '}')
    return ('[', ']') if isinstance(value, list) else ('(', ')')


def are_names(value: Any) -> bool:
    return all(isinstance(key, str) and key.isidentifier() for key in value)
