"""Which checkpoints of a run are clean, and which one to go on from?

Looks at every weight, buffer, average, loss scale and optimizer state, on the
CPU; a file's code is never run. Inf is no fault in a mask that is the same,
bit for bit, wherever it is saved: better scan two checkpoints than one.
Exit status: 0 if the newest checkpoint is clean, 1 if not, 2 if there is none.

Example:
    python tools/scan_checkpoints.py work_dirs/digits --json scan.json
"""

import argparse
import json
import math
import shlex
import sys
from pathlib import Path

from mmengine.utils import ProgressBar
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
MAX_SHOWN = 10  # findings of one checkpoint; --json has them all


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('paths', nargs='+', type=Path, metavar='DIR_OR_FILE')
    told = "weights beyond are absurd, an optimizer's state beyond its square"
    parser.add_argument('--limit', type=float, default=1e18, help=told)
    parser.add_argument('--json', type=Path, metavar='FILE')
    args = parser.parse_args(argv)
    if not 0 < args.limit < math.inf:
        parser.error('--limit must be a finite number above 0')
    missing = [str(path) for path in args.paths if not path.exists()]
    if missing:
        parser.error(f'not found: {", ".join(missing)}')
    return args


def find_checkpoints(paths):
    found = {}  # the same file, or a link to it, counts once
    for path in paths:
        is_folder = path.is_dir() and not list(path.glob('rank*.pth'))
        for each in sorted(path.glob('*.pth')) if is_folder else [path]:
            found.setdefault(each.resolve(), each)
    return list(found.values())


def advise(files):
    """The newest clean checkpoint, and what the last line says of it."""
    clean = [file for file in files if file.status == 'clean']
    resumable = [file for file in clean if file.has_optimizer]
    if clean:
        path = str((resumable or clean)[-1].path)
        option = '--resume ' if resumable else '--cfg-options load_from='
        option += shlex.quote(path)
        return path, f'newest clean: {path}; go on with {option}'
    return None, 'newest clean: none'


def show(files):
    table = Table('checkpoint', 'iter', 'status', 'part', 'bad tensor', 'what')
    for file in files:
        count = '-' if file.iter is None else str(file.iter)
        start = [str(file.path), count, file.status]
        findings = file.scan.findings
        if not findings:
            table.add_row(*start, '', '', file.reason)
        for bad in findings[:MAX_SHOWN]:
            what = f'{bad.kind} {bad.count}/{bad.numel} {bad.dtype}'
            if bad.min is not None:
                what += f', finite: {bad.min:.4g} to {bad.max:.4g}'
            table.add_row(*start, bad.part, bad.name, what)
            start = [''] * 3
        if findings[MAX_SHOWN:]:
            table.add_row(*start, '', f'... {len(findings)} in all', '')
    console = Console(markup=False)
    # A log's lines are to be found by a search: none is broken in two.
    console.width = console.width if console.is_terminal else 240
    console.print(table)


def main(argv=None):
    sys.path[:0] = [str(ROOT)]
    args = parse_args(argv)
    from mmnanguard.numerics.checkpoints.checkpoint_file import (
        judge_files,
        scan_file,
    )
    from mmnanguard.safe_load import allow_mmengine_checkpoints

    allow_mmengine_checkpoints()
    paths, files = find_checkpoints(args.paths), []
    is_shown = sys.stdout.isatty() and paths
    bar = ProgressBar(len(paths), file=sys.stdout) if is_shown else None
    for path in paths:
        files.append(scan_file(path, args.limit))
        if bar:
            bar.update()
    files = judge_files(files)
    print()  # ends the bar
    show(files)
    masks = {mask.name for file in files for mask, _ in file.scan.masks}
    if masks:
        print('masks that hold inf by design:', *sorted(masks))
    own = [file for file in files if file.status != 'foreign']
    path, advice = advise(own)
    status = 2 if not own else int(own[-1].status != 'clean')
    if args.json:
        report = dict(status=status, newest_clean=path, advice=advice)
        report['checkpoints'] = [file.to_dict() for file in files]
        args.json.write_text(json.dumps(report, indent=2, allow_nan=False))
    print('no checkpoint found' if not own else advice)
    return status


if __name__ == '__main__':
    sys.exit(main())
