"""The report as text in a terminal."""

from typing import Any, List, Sequence

from mmnanguard.core import GuardConfigError
from mmnanguard.core.rows.read_row import sentence_of

from .panels import FOLLOWED, PANELS
from .row_text import command_of
from .run_report import RunReport

__all__ = ['print_reports']

MAX_SHOWN = 20  # rows of a table
WIDTH = 160  # where there is no terminal
Rows = List[List[Any]]


def print_reports(reports: Sequence[RunReport]) -> None:
    """Print what the page shows, without its curves.

    Where stdout is no terminal, without colors and 160 columns wide.

    Raises:
        GuardConfigError: Without rich.
    """
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError as error:
        raise GuardConfigError(
            'Text is laid out by rich, which is not installed: pip install '
            'rich. --json needs nothing.'
        ) from error
    console = Console(markup=False, highlight=False)
    console.width = console.width if console.is_terminal else WIDTH

    def show(title: str, head: Sequence[str], rows: Rows) -> None:
        if not rows:
            return
        table = Table(*head)
        for row in rows[:MAX_SHOWN]:
            table.add_row(*(Text(plain(cell)) for cell in row))
        more = len(rows) - MAX_SHOWN
        console.print()
        console.print(title + f', {more:,} more of them' * (more > 0))
        console.print(table)

    for report in reports:
        verdict = report.verdict
        style = 'bold green' if verdict.is_healthy else 'bold red'
        console.print(Text(plain(report.name), style='bold'))
        # In a log it is one line.
        whole = not console.is_terminal
        sentence = Text(plain(verdict.sentence), style=style)
        console.print(sentence, soft_wrap=whole)
        for reason in verdict.reasons[1:]:
            console.print(Text(plain(f'also: {reason}')))
        console.print(report.progress)
        for number, step in enumerate(verdict.steps, 1):
            console.print(Text(plain(f'{number}. {step.text}')))
            for line in filter(None, (step.detail, step.code)):
                console.print(Text(plain(line)), soft_wrap=True)
        for title, head, rows in tables_of(report):
            show(title, head, rows)
        console.print()


def tables_of(report: RunReport) -> List[Any]:
    """Return title, columns and rows of each table."""
    summary = report.summary
    names = ('first', 'last')
    causes: Rows = [
        [cause, f'{count:,}', *ends(summary.iters[cause])]
        for cause, count in summary.causes.items()
    ]
    params: Rows = [
        [one.name, one.count, one.num_routine, one.first, one.last]
        for one in summary.parameters
    ]
    modules: Rows = [
        [one.name, one.count, one.first, ', '.join(one.causes)]
        for one in summary.modules
    ]
    samples: Rows = [
        [one.name, one.count, one.num_batches, ', '.join(one.causes)]
        for one in summary.samples
    ]
    others: Rows = [
        [
            row['iter'],
            row.get('kind'),
            sentence_of(row) + below(command_of(row)),
        ]
        for row in summary.events
        if row.get('kind') != 'update'
    ]
    followed = PANELS[FOLLOWED].title.capitalize()
    return [
        ('Updates by cause', ('cause', 'updates', *names), causes),
        ('Parameters', ('name', 'rejected', 'routine', *names), params),
        ('Modules', ('name', 'autopsies', 'first', 'operations'), modules),
        ('Samples', ('name', 'named', 'batches', 'found by'), samples),
        (followed, ('iteration', 'kind', 'what'), others),
    ]


def ends(iters: Sequence[int]) -> List[str]:
    return [f'{iters[0]:,}', f'{iters[-1]:,}']


def below(code: str) -> str:
    return f'\n{code}' if code else ''


def plain(value: Any) -> str:
    """Escape control characters, so that no name steers the terminal."""
    text = '' if value is None else str(value)
    return ''.join(
        c if c.isprintable() or c == '\n' else ascii(c)[1:-1] for c in text
    )
