"""Report a guarded run on one page: its health, what went wrong, the culprit,
and what to do.

Reads the events that EventLogHook wrote, and MMEngine's scalars beside them.
Needs neither torch nor mmengine; the page needs no network. Several runs
are shown one below the other, with the same axes.
Exit status: 0 if all runs are healthy, 1 if one is sick, crashed or not
guarded, 2 for a folder without events or a wrong command line.

Example:
    python tools/report.py work_dirs/digits
    python tools/report.py work_dirs/before work_dirs/after --out compare.html
"""

import argparse
import itertools
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, List, Optional, Sequence

if TYPE_CHECKING:
    from mmnanguard.report.run_report import RunReport

ROOT = Path(__file__).resolve().parents[1]
NAME = 'nanguard_report.html'
# A page with more rows is slow to open.
MAX_ROWS = 4000  # in the tables of all runs together
MAX_ROWS_OF_ONE = 2000  # in the tables of a single run


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line."""
    from mmnanguard._tool_parser import ToolParser

    parser = ToolParser(__doc__)
    parser.add_argument('paths', nargs='+', metavar='WORK_DIR|events.jsonl')
    parser.add_argument(
        '--out',
        type=Path,
        metavar='FILE',
        help=f'default: {NAME} in the work dir; of several paths, here',
    )
    parser.add_argument(
        '--run',
        action='append',
        metavar='ID',
        help='one of several in a work dir, by name; may be given again',
    )
    parser.add_argument(
        '--watch',
        nargs='?',
        type=seconds,
        const=30.0,
        metavar='SECONDS',
        help='while training, write the page again after so many (30)',
    )
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument(
        '--text', action='store_true', help='print it, without curves'
    )
    forms.add_argument(
        '--json',
        action='store_true',
        help='print it as JSON, or write that to --out',
    )
    args = parser.parse_args(argv)
    if args.watch and (args.text or args.json):
        parser.error('--watch is for the page: leave out --text and --json')
    if args.out and args.text:
        parser.error('--text goes to the terminal: leave out --out')
    return args


def seconds(text: str) -> float:
    """Read a number of seconds above 0."""
    # argparse takes a path after a bare --watch as its value; hence the hint.
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(
            f'{text!r} is no number of seconds above 0 (paths come first)'
        )
    return value


def page_of(args: argparse.Namespace) -> Path:
    """Return the path of the page."""
    if args.out:
        return args.out
    # A page on several runs belongs to none of their folders.
    if args.paths[1:]:
        return Path(NAME)
    folder = Path(args.paths[0])
    if not folder.is_dir():
        folder = folder.parent
    return folder / NAME


def load(args: argparse.Namespace) -> List['RunReport']:
    """Read all runs that the command line names."""
    from mmnanguard.report import load_run

    requested = list(itertools.product(args.paths, args.run or [None]))
    max_rows = min(MAX_ROWS // len(requested), MAX_ROWS_OF_ONE)
    # In a log or under --watch, the progress would bury the results.
    is_shown = sys.stderr.isatty() and not args.watch

    def on_progress(done: int, total: int) -> None:
        """Show the share of the rows that are read."""
        if is_shown:
            end = '\n' if done == total else ''
            print(f'\r{done / total:4.0%} read', end=end, file=sys.stderr)

    runs = []
    for path, run in requested:
        runs.append(load_run(path, run, max_rows, on_progress))
    return runs


def report(
    args: argparse.Namespace, reload_after: Optional[float] = None
) -> int:
    """Write or print the report; return the exit status.

    Args:
        args: The command line.
        reload_after: Seconds after which the page reloads itself.
    """
    from mmnanguard._support.escape import escape
    from mmnanguard.core.rows.json_numbers import to_json
    from mmnanguard.report import print_reports, write_page

    runs = load(args)
    status = int(not all(run.verdict.is_healthy for run in runs))
    if args.json:
        content = dict(
            schema=1, status=status, runs=[run.to_dict() for run in runs]
        )
        line = to_json(content) + '\n'
        if args.out:
            args.out.write_text(line, encoding='utf-8')
        else:
            # As bytes: a terminal that is not UTF-8 must not break the JSON.
            sys.stdout.buffer.write(line.encode('utf-8', 'backslashreplace'))
    elif args.text:
        print_reports(runs)
    else:
        path = page_of(args)
        write_page(runs, path, reload_after)
        for run in runs:
            print(f'{run.name}: {run.verdict.sentence}')
        print(escape(f'written to {path}'), flush=True)
    return status


def watch(args: argparse.Namespace) -> int:
    """Write the page again and again until Ctrl-C; return the exit status.

    The last page does not reload itself.
    """
    from mmnanguard._support.escape import escape_lines
    from mmnanguard.core import GuardConfigError

    try:
        while True:
            try:
                report(args, reload_after=args.watch)
            except GuardConfigError as error:
                # The run may not have written anything yet.
                print(escape_lines(error), file=sys.stderr)
            time.sleep(args.watch)
    except KeyboardInterrupt:
        return report(args)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the tool; return its exit status."""
    sys.path[:0] = [str(ROOT)]
    args = parse_args(argv)
    from mmnanguard._tool_parser import run_tool

    return run_tool(watch if args.watch else report, args)


if __name__ == '__main__':
    sys.exit(main())
