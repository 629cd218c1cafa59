"""Convert a config of mmcv 1.x, or one with a hand-written NaN guard, into a
guarded 2.x config.

Prints the difference and notes on it; writes only with --out or --in-place.
The config is executed to be read, as MMEngine does with any. Exit status: 0
if all is done, 1 if something is left to you, 2 for a wrong command line or a
file that cannot be read, 70 with a traceback if the tool itself fails.

Example:
    python tools/migrate_config.py configs/cases/fp16_static_scale/old_1x.py
"""

import argparse
import difflib
import sys
import traceback
from pathlib import Path
from typing import Optional, Sequence

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
# The exit status of a fault of this tool (EX_SOFTWARE of sysexits.h).
CRASHED = 70
COLOURS = {'+': 'green', '-': 'red', '@': 'cyan'}


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', type=Path)
    where = parser.add_mutually_exclusive_group()
    where.add_argument('--out', type=Path, metavar='FILE', help='a new file')
    where.add_argument('--in-place', action='store_true')
    parser.add_argument(
        '--guard',
        metavar='NAME|FILE',
        help='fp32, bf16, fp16, full, or an overlay; by default that of the '
        "config's precision",
    )
    args = parser.parse_args(argv)
    if not args.config.is_file():
        parser.error(f'not found: {args.config}')
    if args.out and args.out.exists():
        parser.error(f'{args.out} exists: remove it, or use --in-place')
    # MMEngine resolves _base_ from the folder of the file.
    if args.out and args.out.resolve().parent != args.config.resolve().parent:
        parser.error('--out must be beside the config: its _base_ is relative')
    return args


def show(old: str, new: str, path: Path) -> None:
    """Print the difference, in colour on a terminal."""
    from mmnanguard._support.escape import escape

    lines = difflib.unified_diff(
        old.splitlines(),
        new.splitlines(),
        str(path),
        f'{path} (2.x)',
        lineterm='',
    )
    # soft_wrap: a wrapped line could not be used as a patch.
    console = Console(soft_wrap=True, highlight=False)
    for line in lines:
        console.print(Text(escape(line), style=COLOURS.get(line[0], '')))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the tool; return its exit status."""
    args = parse_args(argv)
    # libcst is needed for this tool only and is not installed by default.
    try:
        from mmnanguard.migrate import migrate
    except ImportError as error:
        print(f'{error}: pip install libcst', file=sys.stderr)
        return 2
    from mmnanguard._support.atomic_write import atomic_write
    from mmnanguard.core import GuardConfigError
    from mmnanguard.optim.apply_guard import load_overlay

    try:
        migrated = migrate(args.config, load_overlay, args.guard)
    except (GuardConfigError, OSError, UnicodeError) as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        return 2
    except Exception:
        # Python's own exit status would be 1: that something is left to you.
        traceback.print_exc()
        print(
            f'{args.config} could not be migrated; nothing was written. This '
            'is a fault of the tool: please report it with the config.',
            file=sys.stderr,
        )
        return CRASHED
    show(migrated.old, migrated.new, args.config)
    for title, lines in migrated.notes.sections().items():
        # A section without notes is left out.
        if lines:
            print(f'\n{title}:')
            for line in lines:
                print(f'- {line}')
    if migrated.old == migrated.new:
        print('nothing to do here')
    path = args.out
    if args.in_place:
        path = args.config
    # Atomically, because --in-place must not leave half a config behind. With
    # newline='', the line ends of the source stay unchanged.
    if path:
        with atomic_write(path) as aside, open(
            aside, 'w', encoding='utf-8', newline=''
        ) as file:
            file.write(migrated.new)
        print(f'\nwritten: {path}')
    return int(bool(migrated.notes.left))


if __name__ == '__main__':
    sys.path[:0] = [str(ROOT)]
    sys.exit(main())
