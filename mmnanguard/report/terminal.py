"""The report as text in a terminal."""

from typing import TYPE_CHECKING, List, NamedTuple, Sequence

from mmnanguard._support.escape import escape_lines
from mmnanguard.core import GuardConfigError

from .badge import HEALTHY, RECOVERED, UNCLEAR
from .panels import FOLLOWED, PANELS
from .parse_row import iter_of
from .row_text import command_of, text_of
from .run_report import RunReport
from .summary import Summary

# Rich is optional: `--json` and the page work without it.
if TYPE_CHECKING:
    from rich.console import Console

__all__ = ['print_reports']

MAX_SHOWN = 20  # rows of a table, so that a table fits on a screen
# The styles of the badges; others are red.
STYLES = {
    HEALTHY: 'bold green',
    RECOVERED: 'bold cyan',
    UNCLEAR: 'bold yellow',
}
WIDTH = 160  # without a terminal, rich assumes 80, which cuts names in two


class TextTable(NamedTuple):
    """A table of the report.

    Attributes:
        title: The line above the table.
        head: The names of the columns.
        rows: The cells of all rows.
    """

    title: str
    head: Sequence[str]
    rows: List[Sequence[object]]


def print_reports(reports: Sequence[RunReport]) -> None:
    """Print the content of the page without its curves.

    If stdout is no terminal, the text has no colors and is 160 columns wide.

    Raises:
        GuardConfigError: If rich is not installed.
    """
    try:
        from rich.console import Console
    except ImportError as error:
        raise GuardConfigError(
            'Text is laid out by rich, which is not installed: pip install '
            'rich. --json needs nothing.'
        ) from error
    # Rich would read '[bold]' in the name of a sample as markup, and color
    # numbers wherever they are.
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    for report in reports:
        print_assessment(console, report)
        for table in tables_of(report.summary):
            print_table(console, table)
        console.print()


def print_assessment(console: 'Console', report: RunReport) -> None:
    """Print the verdict on a run and the recommended steps."""
    from rich.text import Text

    verdict = report.verdict
    style = STYLES.get(verdict.badge, 'bold red')
    console.print(Text(escape_lines(report.name), style='bold'))
    # With `soft_wrap` rich does not break lines: in a log, each is one line
    # that grep finds.
    first = Text(escape_lines(report.first_line), style=style)
    console.print(first, soft_wrap=not console.is_terminal)
    for label, clause in report.lines_below:
        line = Text(escape_lines(f'{label}: {clause}'))
        console.print(line, soft_wrap=not console.is_terminal)
    # The first line has the first reason.
    for reason in verdict.reasons[1:]:
        console.print(Text(escape_lines(f'also: {reason}')))
    console.print(report.progress)
    if report.margins:
        margins = Text(escape_lines(report.margins))
        console.print(margins, soft_wrap=not console.is_terminal)
    for number, step in enumerate(verdict.steps, 1):
        console.print(Text(escape_lines(f'{number}. {step.text}')))
        # Commands that are broken into lines cannot be pasted.
        for part in filter(None, (step.detail, step.code)):
            console.print(Text(escape_lines(part)), soft_wrap=True)


def print_table(console: 'Console', table: TextTable) -> None:
    """Print a table, or nothing if it has no rows."""
    from rich.table import Table
    from rich.text import Text

    if not table.rows:
        return
    grid = Table(*table.head)
    for row in table.rows[:MAX_SHOWN]:
        # `Text` objects are never parsed as markup.
        grid.add_row(*map(Text, map(cell, row)))
    num_more = len(table.rows) - MAX_SHOWN
    console.print()
    console.print(
        table.title + f', {num_more:,} more of them' * (num_more > 0)
    )
    console.print(grid)


def tables_of(summary: Summary) -> List[TextTable]:
    """Return the tables of a run."""
    return [
        table_of_causes(summary),
        *tables_of_culprits(summary),
        table_of_events(summary),
    ]


def table_of_causes(summary: Summary) -> TextTable:
    """Return the table of updates by cause."""
    head = ('cause', 'updates', 'first', 'last')
    table = TextTable('Updates by cause', head, [])
    for cause, num in summary.causes.items():
        iters = summary.iters[cause]
        table.rows.append(
            (cause, f'{num:,}', f'{iters[0]:,}', f'{iters[-1]:,}')
        )
    return table


def tables_of_culprits(summary: Summary) -> List[TextTable]:
    """Return the tables of parameters, modules and samples."""
    # A culprit's count and causes mean something else in each table.
    head = ('name', 'rejected', 'routine', 'first', 'last')
    params = TextTable('Parameters', head, [])
    for param in summary.parameters:
        counts = (param.count, param.num_routine)
        params.rows.append((param.name, *counts, param.first, param.last))
    modules = TextTable(
        'Modules', ('name', 'autopsies', 'first', 'operations'), []
    )
    for module in summary.modules:
        operations = ', '.join(module.causes)
        modules.rows.append(
            (module.name, module.count, module.first, operations)
        )
    samples = TextTable(
        'Samples', ('name', 'named', 'batches', 'found by'), []
    )
    for sample in summary.samples:
        phases = ', '.join(sample.causes)
        samples.rows.append(
            (sample.name, sample.count, sample.num_batches, phases)
        )
    return [params, modules, samples]


def table_of_events(summary: Summary) -> TextTable:
    """Return the table of all rows but updates."""
    title = PANELS[FOLLOWED].title.capitalize()
    table = TextTable(title, ('iteration', 'kind', 'what'), [])
    for row in summary.events:
        # Updates may be thousands; the other tables count them.
        if row.get('kind') == 'update':
            continue
        text, command = text_of(row), command_of(row)
        # The sentence of an alert has its config line.
        if command not in text:
            text = f'{text}\n{command}'
        table.rows.append((iter_of(row), row.get('kind'), text))
    return table


def cell(value: object) -> str:
    """Return a value as the text of a cell; None as ''."""
    if value is None:
        return ''
    return escape_lines(value)
