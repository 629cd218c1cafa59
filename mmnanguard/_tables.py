"""Tables of the tools, which fit a narrow terminal and lose no letter."""

import os
import sys
from typing import TYPE_CHECKING, Iterable, Sequence

from ._support.escape import escape_lines

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ['print_table', 'table_console']

# Columns of a log, in which a name that is broken in two cannot be found.
LOG_WIDTH = 240


def table_console() -> 'Console':
    """Return a console as wide as the terminal, or as ``COLUMNS`` says.

    Without both, as in a log, it is wide.
    """
    # Here, as rich is not needed where nothing is printed.
    from rich.console import Console

    # rich would read '[bold]' in the name of a sample as markup.
    width = None
    if not sys.stdout.isatty() and 'COLUMNS' not in os.environ:
        width = LOG_WIDTH
    return Console(width=width, markup=False, highlight=False)


def print_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], has_lines: bool = False
) -> None:
    """Print a table, whose cells are escaped and folded.

    Args:
        head: The titles of the columns.
        rows: The cells of each row.
        has_lines: Whether there is a line between two rows.
    """
    from rich.table import Table

    table = Table(show_lines=has_lines)
    for title in head:
        # By default, rich cuts off the end of a long word.
        table.add_column(title, overflow='fold')
    for row in rows:
        table.add_row(*map(escape_lines, row))
    table_console().print(table)
