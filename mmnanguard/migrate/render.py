"""Python source for the values of a config."""

from dataclasses import dataclass
from typing import Callable, List, Optional, Tuple

from .config_value import ConfigValue, leave_out

__all__ = ['Kept', 'Piece', 'render']

# The line length that the linters of the mm projects allow.
WIDTH = 79


@dataclass(frozen=True)
class Kept:
    """A value of the old config that is carried over unchanged.

    Attributes:
        path: The name that the file assigns, then the keys below it.
        value: The value, which is written if its source cannot be moved.
        without: The keys of a dict that are left out.
        is_said: Whether the source says the whole value; otherwise the value
            may have entries that the source inherits.
    """

    path: Tuple[str, ...]
    value: ConfigValue
    without: Tuple[str, ...] = ()
    is_said: bool = False


@dataclass(frozen=True)
class Piece:
    """A part of the old source.

    Attributes:
        text: The source.
        indent: The indentation of its first line, in columns.
        column: The column at which it begins, from 0.
    """

    text: str
    indent: int
    column: int

    def at(self, indent: int, column: int) -> str:
        """Return the source with all its lines shifted to a new place.

        Args:
            indent: The indentation of the line that it will begin on.
            column: The column at which it will begin.
        """
        first, *rest = self.text.split('\n')
        # Shifting the lines of a multi-line string would change its value.
        if not rest or '"""' in self.text or "'''" in self.text:
            return self.text
        # After an opening bracket the lines hang from the indentation;
        # otherwise they are aligned with the first character.
        hangs = first.rstrip()[-1:] in ('(', '[', '{')
        shift = indent - self.indent if hangs else column - self.column
        lines = [first]
        for line in rest:
            content = line.lstrip()
            # A line may be indented less than the shift takes away.
            width = max(0, len(line) - len(content) + shift)
            lines.append(' ' * width + content)
        return '\n'.join(lines)


def render(
    value: ConfigValue,
    find: Callable[[Kept], Optional[Piece]],
    indent: int = 0,
    column: int = 0,
) -> str:
    """Return a value's source, in lines of at most 79 columns if possible.

    Args:
        value: A plain value, or one that contains :class:`Kept`.
        find: The function that returns the source of a kept value, or None
            if there is none that can be moved.
        indent: The indentation of the line that the source will begin on.
        column: The column at which it will begin; a closing bracket or comma
            after it takes another column.
    """
    if isinstance(value, Kept):
        piece = find(value)
        if piece is not None:
            return piece.at(indent, column)
        kept = value.value
        if isinstance(kept, dict):
            kept = leave_out(kept, value.without)
        return render(kept, find, indent, column)
    # The mm projects write an empty dict as dict().
    if value == {}:
        return 'dict()'
    if not isinstance(value, (dict, list, tuple)) or not value:
        return repr(value)
    text = render_on_one_line(value, find, indent, column)
    if '\n' not in text and column + len(text) < WIDTH:
        return text
    return render_on_several_lines(value, find, indent)


def render_on_one_line(
    value: ConfigValue,
    find: Callable[[Kept], Optional[Piece]],
    indent: int,
    column: int,
) -> str:
    """Return the source of a container without line breaks between entries."""
    # 6 columns are for 'dict(' and the comma or bracket after an entry. This
    # may be too many, and break an entry that would just fit, but no line
    # gets too long.
    start = column + 6
    parts = []
    for prefix, entry in prefixed_entries(value):
        at = start + len(prefix)
        parts.append(prefix + render(entry, find, indent, at))
        start = at + len(parts[-1]) + 2
    # Without the comma, (1) would be a number in brackets.
    if isinstance(value, tuple) and len(value) == 1:
        return f'({parts[0]},)'
    opening, closing = brackets(value)
    return opening + ', '.join(parts) + closing


def render_on_several_lines(
    value: ConfigValue, find: Callable[[Kept], Optional[Piece]], indent: int
) -> str:
    """Return the source of a container with an entry on each line."""
    inner = indent + 4
    lines = []
    for prefix, entry in prefixed_entries(value):
        part = render(entry, find, inner, inner + len(prefix))
        lines.append(f'{" " * inner}{prefix}{part},\n')
    opening, closing = brackets(value)
    return f'{opening}\n{"".join(lines)}{" " * indent}{closing}'


def prefixed_entries(value: ConfigValue) -> List[Tuple[str, ConfigValue]]:
    """Return the source before each item, such as 'key=', and the item."""
    if not isinstance(value, dict):
        return [('', item) for item in value]
    form = '{!r}: '
    if are_names(value):
        form = '{}='
    return [(form.format(key), item) for key, item in value.items()]


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
