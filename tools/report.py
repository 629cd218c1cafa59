"""What a guarded run went through, on one page: is it healthy, where did it
go wrong, who did it, what to do.

Reads the events that EventLogHook wrote, and MMEngine's scalars beside them.
Needs neither torch nor mmengine; the page needs no network. Several runs
stand one below the other, with the same axes.
Exit status: 0 if all runs are healthy, 1 if one is sick, 2 if that cannot be
told, as for a folder without events.

Example:
    python tools/report.py work_dirs/digits
    python tools/report.py work_dirs/before work_dirs/after --out compare.html
"""

import argparse
import math
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = 'nanguard_report.html'
MAX_ROWS = 4000  # in the tables of all runs together
MAX_ROWS_OF_ONE = 2000


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('paths', nargs='+', metavar='WORK_DIR|events.jsonl')
    told = f'default: {NAME} in the work dir; of several paths, here'
    parser.add_argument('--out', type=Path, metavar='FILE', help=told)
    told = 'one of several in a work dir, by name; may be given again'
    parser.add_argument('--run', action='append', metavar='ID', help=told)
    told = 'while training, write the page again after so many (30)'
    option = dict(nargs='?', type=seconds, const=30.0, metavar='SECONDS')
    parser.add_argument('--watch', help=told, **option)
    forms = parser.add_mutually_exclusive_group()
    told = 'print it, without curves'
    forms.add_argument('--text', action='store_true', help=told)
    told = 'print it as JSON, or write that to --out'
    forms.add_argument('--json', action='store_true', help=told)
    args = parser.parse_args(argv)
    if args.watch and (args.text or args.json):
        parser.error('--watch is for the page: leave out --text and --json')
    if args.out and args.text:
        parser.error('--text goes to the terminal: leave out --out')
    return args


def seconds(text):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        told = f'{text!r} is no number of seconds above 0 (paths come first)'
        raise argparse.ArgumentTypeError(told)
    return value


def page_of(args):
    path = Path(args.paths[0])
    if args.out or args.paths[1:]:
        return args.out or Path(NAME)
    return (path if path.is_dir() else path.parent) / NAME


def load(args):
    from mmnanguard.report import load_run

    asked = [(path, run) for path in args.paths for run in args.run or [None]]
    max_rows = min(MAX_ROWS // len(asked), MAX_ROWS_OF_ONE)
    is_shown = sys.stderr.isatty() and not args.watch

    def on_progress(done, total):
        if is_shown:
            end = '\n' if done == total else ''
            print(f'\r{done / total:4.0%} read', end=end, file=sys.stderr)

    return [load_run(path, run, max_rows, on_progress) for path, run in asked]


def report(args, reload_after=None):
    """Write or print it; the exit status."""
    from mmnanguard.core.rows.json_numbers import to_json
    from mmnanguard.report import print_reports, write_page

    runs = load(args)
    status = int(not all(run.verdict.is_healthy for run in runs))
    if args.json:
        told = dict(schema=1, status=status, runs=[r.to_dict() for r in runs])
        line = to_json(told) + '\n'
        if args.out:
            args.out.write_text(line, encoding='utf-8')
        else:
            sys.stdout.buffer.write(line.encode('utf-8', 'backslashreplace'))
    elif args.text:
        print_reports(runs)
    else:
        path = page_of(args)
        write_page(runs, path, reload_after)
        for run in runs:
            print(f'{run.name}: {run.verdict.sentence}')
        print(f'written to {path}', flush=True)
    return status


def watch(args):
    """Until it is interrupted; the last page does not load itself again."""
    from mmnanguard.core import GuardConfigError

    try:
        while True:
            try:
                report(args, reload_after=args.watch)
            except GuardConfigError as error:  # nothing is written yet, say
                print(error, file=sys.stderr)
            time.sleep(args.watch)
    except KeyboardInterrupt:
        return report(args)


def main(argv=None):
    sys.path[:0] = [str(ROOT)]
    args = parse_args(argv)
    from mmnanguard.core import GuardConfigError

    try:
        return watch(args) if args.watch else report(args)
    except (GuardConfigError, OSError) as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
    except Exception:  # 1 would say that the run is sick
        traceback.print_exc()
    return 2


if __name__ == '__main__':
    sys.exit(main())
