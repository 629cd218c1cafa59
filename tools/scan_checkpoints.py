"""Find the clean checkpoints of a run, and the one to continue from.

Checks every weight, buffer, average, loss scale and optimizer state, on the
CPU; a file's code is never run. Inf is no fault in a mask that is the same,
bit for bit, in all checkpoints: scan two checkpoints rather than one.
Exit status: 0 if the newest checkpoint is clean, 1 if not, 2 if there is none.

Example:
    python tools/scan_checkpoints.py work_dirs/digits --json scan.json
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Dict,
    Iterable,
    List,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from mmengine.utils import ProgressBar

if TYPE_CHECKING:
    from mmnanguard.numerics.checkpoints.checkpoint_file import CheckpointFile

ROOT = Path(__file__).resolve().parents[1]
MAX_SHOWN = 10  # findings of one checkpoint; --json has them all


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line."""
    from mmnanguard._tool_parser import ToolParser

    parser = ToolParser(__doc__)
    parser.add_argument('paths', nargs='+', type=Path, metavar='DIR_OR_FILE')
    parser.add_argument(
        '--limit',
        type=float,
        default=1e18,
        help="weights beyond are absurd, an optimizer's state beyond its "
        'square',
    )
    parser.add_argument('--json', type=Path, metavar='FILE')
    args = parser.parse_args(argv)
    if not 0 < args.limit < math.inf:
        parser.error('--limit must be a finite number above 0')
    missing = [str(path) for path in args.paths if not path.exists()]
    if missing:
        parser.error(f'not found: {", ".join(missing)}')
    return args


def find_checkpoints(paths: Iterable[Path]) -> List[Path]:
    """Return the checkpoints among some files and folders."""
    # A file that is given twice, or that a link leads to, counts once.
    checkpoints: Dict[Path, Path] = {}
    for path in paths:
        # A folder with a file for each rank is a single checkpoint.
        candidates = [path]
        if path.is_dir() and not list(path.glob('rank*.pth')):
            candidates = sorted(path.glob('*.pth'))
        for checkpoint in candidates:
            checkpoints.setdefault(checkpoint.resolve(), checkpoint)
    return list(checkpoints.values())


def advise(files: Sequence['CheckpointFile']) -> Tuple[Optional[str], str]:
    """Return the newest clean checkpoint, and the advice to print on it."""
    from mmnanguard._support.escape import escape, shell_word

    clean = [file for file in files if file.status == 'clean']
    resumable = [file for file in clean if file.has_optimizer]
    # A newer checkpoint without an optimizer, such as a best_*.pth, would lose
    # the moments and the place in the schedule.
    if clean:
        newest = (resumable or clean)[-1].path
        path = str(newest)
        # MMEngine would take the path '-a/b.pth' for an option.
        if path.startswith('-'):
            path = str(newest.absolute())
        option = '--resume ' if resumable else '--cfg-options load_from='
        option += shell_word(path)
        return path, f'newest clean: {escape(path)}; go on with {option}'
    return None, 'newest clean: none'


def show(files: Sequence['CheckpointFile']) -> None:
    """Print a table of checkpoints with their findings."""
    from mmnanguard._tables import print_table

    rows = []
    for file in files:
        count = '-' if file.iter is None else str(file.iter)
        start = [near(file.path), count, file.status]
        findings = file.scan.findings
        if not findings:
            rows.append([*start, file.reason])
        for bad in findings[:MAX_SHOWN]:
            values = f'{bad.kind} {bad.count}/{bad.numel} {bad.dtype}'
            if bad.min is not None:
                values += f', finite: {bad.min:.4g} to {bad.max:.4g}'
            rows.append([*start, f'{bad.part} {bad.name}: {values}'])
            # The checkpoint is named once, before its first finding.
            start = [''] * 3
        if findings[MAX_SHOWN:]:
            rows.append(['', '', '', f'... {len(findings)} in all'])
    print_table(('checkpoint', 'iter', 'status', 'what'), rows)


def near(path: Path) -> str:
    """Return a path as it is seen from here, if that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)


def scan(args: argparse.Namespace) -> int:
    """Scan and report; return the exit status."""
    from mmnanguard._support.escape import escape
    from mmnanguard.numerics.checkpoints.checkpoint_file import (
        judge_files,
        scan_file,
    )
    from mmnanguard.safe_load import allow_mmengine_checkpoints

    allow_mmengine_checkpoints()
    paths, files = find_checkpoints(args.paths), []
    bar = None
    # In a log, a bar is a line of control characters.
    if paths and sys.stdout.isatty():
        bar = ProgressBar(len(paths), file=sys.stdout)
    for path in paths:
        files.append(scan_file(path, args.limit))
        if bar:
            bar.update()
    files = judge_files(files)
    print()  # ends the bar
    show(files)
    masks: Set[str] = set()
    for file in files:
        for mask, _ in file.scan.masks:
            masks.add(mask.name)
    if masks:
        names = ' '.join(sorted(masks))
        print(f'masks that hold inf by design: {escape(names)}')
    checkpoints = [file for file in files if file.status != 'foreign']
    newest_clean, advice = advise(checkpoints)
    status = 2
    if checkpoints:
        status = int(checkpoints[-1].status != 'clean')
    if args.json:
        report: Dict[str, object] = dict(
            status=status, newest_clean=newest_clean, advice=advice
        )
        # Foreign files, too, so that no file is silently left out.
        report['checkpoints'] = [file.to_dict() for file in files]
        args.json.write_text(json.dumps(report, indent=2, allow_nan=False))
    if not checkpoints:
        advice = 'no checkpoint found'
    print(advice)
    return status


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the tool; return its exit status."""
    sys.path[:0] = [str(ROOT)]
    args = parse_args(argv)
    from mmnanguard._tool_parser import run_tool

    return run_tool(scan, args)


if __name__ == '__main__':
    sys.exit(main())
