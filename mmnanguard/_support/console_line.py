"""Lines for a console, of which each is at most ``WIDTH`` columns.

Only the text of a message counts: a logger's prefix (time, name, level) is
its own choice. An event has one line, which :func:`fit` makes of clauses. A
message that is no event may have several lines, see :func:`wrap`.
"""

import textwrap
import unicodedata
from typing import Iterable, Iterator, Sequence, Tuple, Union

from .escape import escape

__all__ = ['WIDTH', 'columns', 'fit', 'named', 'shorten_name', 'wrap']

WIDTH = 160
# Columns that a name may take, from the best to the least. The last one is
# the room of a name in a line that is full.
NAME_WIDTHS = (WIDTH, 80, 50, 36, 24)

# A text, or several forms of it, from the full one to the shortest.
Clause = Union[str, Iterable[str]]


def fit(*clauses: Clause, first: Sequence[int] = ()) -> str:
    """Join clauses to one line of at most ``WIDTH`` columns, escaped.

    Nothing is cut off: where room is short, clauses take a shorter form.
    Every clause gets at least its shortest form, and the clauses before it
    get the rest of the room first.

    Args:
        clauses: The clauses as they are read, the most important one at the
            front. A clause with the form '' is left out where room is short.
        first: Indices of clauses that get room before all others.
    """
    forms = []
    for clause in clauses:
        texts = [clause] if isinstance(clause, str) else clause
        forms.append([escape(text) for text in texts])
    chosen = [texts[-1] for texts in forms]
    for index in dict.fromkeys((*first, *range(len(forms)))):
        for text in forms[index]:
            longer = [*chosen[:index], text, *chosen[index + 1 :]]
            if columns(join(longer)) <= WIDTH:
                chosen = longer
                break
    # The last clauses, where even the shortest forms are too long.
    while columns(join(chosen)) > WIDTH and len(chosen) > 1:
        chosen.pop()
    return join(chosen)


def join(clauses: Sequence[str]) -> str:
    """Join the clauses that are not empty."""
    return '; '.join(filter(None, clauses))


def columns(text: str) -> int:
    """Return the columns of a text in a terminal: wide letters have two."""
    if text.isascii():
        return len(text)
    return sum(map(columns_of, text))


def columns_of(letter: str) -> int:
    return 2 if unicodedata.east_asian_width(letter) in 'WF' else 1


def shorten_name(name: object, width: int) -> str:
    """Return a name in at most ``width`` columns, escaped.

    The end of a name stays: it tells a file from the others of its folder,
    and a parameter from the others of its module.
    """
    shown = escape(name)
    if columns(shown) <= width:
        return shown
    room, start = width - 3, len(shown)
    while columns_of(shown[start - 1]) <= room:
        start -= 1
        room -= columns_of(shown[start])
    return f'...{shown[start:]}'


def named(template: str, *names: object) -> Tuple[str, ...]:
    """Return the forms of a clause with names, from full to short names.

    Args:
        template: The clause, with a ``{}`` for each name.
        names: The names.
    """
    return tuple(each_width(template, names))


def each_width(template: str, names: Sequence[object]) -> Iterator[str]:
    """Yield a clause with names of fewer and fewer columns."""
    for width in NAME_WIDTHS:
        shown = [shorten_name(name, width) for name in names]
        yield template.format(*shown)


def wrap(text: str) -> str:
    """Break the lines of a message that are longer than ``WIDTH`` columns.

    Lines go on with an indent, and no letter is lost. Use it for messages
    that are no event, such as what a run says once at its start. A line that
    is a command stays whole, to be pasted.
    """
    lines = []
    for line in text.split('\n'):
        is_command = line.lstrip().startswith('python ')
        if is_command or columns(line) <= WIDTH:
            lines.append(line)
            continue
        indent = ' ' * (len(line) - len(line.lstrip()) + 2)
        lines += textwrap.wrap(
            line,
            # Wide letters have two columns each.
            WIDTH * len(line) // columns(line),
            subsequent_indent=indent,
            break_on_hyphens=False,
            drop_whitespace=True,
        )
    return '\n'.join(lines)
