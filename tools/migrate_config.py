"""Convert configs of mmcv 1.x, or with a hand-written NaN guard, into guarded
2.x configs.

A config is converted with all files that it inherits from. Prints the
differences and notes on them; writes only with --out or --write. The configs
are executed to be read, as MMEngine does with any. Exit status: 0 if all is
done, 1 if something is left to you, 2 for a wrong command line or a file that
cannot be read, 70 with a traceback if the tool itself fails.

Example:
    python tools/migrate_config.py configs/cases/fp16_static_scale/old_1x.py
"""

import argparse
import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Sequence

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from mmnanguard.migrate import Migrated

ROOT = Path(__file__).resolve().parents[1]
COLOURS = {'+': 'green', '-': 'red', '@': 'cyan'}


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line."""
    from mmnanguard._tool_parser import ToolParser

    parser = ToolParser(__doc__)
    parser.add_argument(
        'config', type=Path, nargs='+', help='configs, or folders of them'
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        '--out',
        type=Path,
        metavar='DIR',
        help='a new folder, in which the files lie as they do now; or a new '
        'file (.py) beside a config without bases',
    )
    where.add_argument(
        '--write',
        '--in-place',
        action='store_true',
        help='change the configs and their bases in their place',
    )
    parser.add_argument(
        '--flatten',
        action='store_true',
        help='make one file of a config and its bases',
    )
    parser.add_argument(
        '--guard',
        metavar='NAME|FILE',
        help='fp32, bf16, fp16, full, or an overlay; by default that of the '
        "config's precision",
    )
    args = parser.parse_args(argv)
    for path in args.config:
        if not path.exists():
            parser.error(f'not found: {path}')
    if args.out and args.out.exists():
        parser.error(f'{args.out} exists: remove it, or use --write')
    is_file = args.out and args.out.suffix == '.py'
    is_one = args.flatten or is_file
    if is_one and (len(args.config) > 1 or args.config[0].is_dir()):
        parser.error('a single file is made of a single config')
    if args.flatten and args.write:
        parser.error('--flatten needs --out, for the bases stay')
    # MMEngine resolves _base_ from the folder of the file.
    if is_file and not args.flatten:
        (path,) = args.config
        if args.out.resolve().parent != path.resolve().parent:
            parser.error(
                '--out FILE.py must be beside the config: its _base_ is '
                'relative; or give a folder, or --flatten'
            )
    return args


def show(migrated: 'Migrated', path: Path) -> None:
    """Print the difference, in colour on a terminal, and the notes."""
    from mmnanguard._support.escape import escape

    lines = difflib.unified_diff(
        migrated.old.splitlines(),
        migrated.new.splitlines(),
        str(path),
        f'{path} (2.x)',
        lineterm='',
    )
    # soft_wrap: a wrapped line could not be used as a patch.
    console = Console(soft_wrap=True, highlight=False)
    for line in lines:
        console.print(Text(escape(line), style=COLOURS.get(line[0], '')))
    for title, notes in migrated.notes.sections().items():
        # A section without notes is left out.
        if notes:
            print(f'\n{title}:')
            for note in notes:
                print(f'- {note}')


def write(path: Path, text: str) -> None:
    """Write a file, and the folder for it."""
    from mmnanguard._support.atomic_write import atomic_write

    path.parent.mkdir(parents=True, exist_ok=True)
    # Atomically, because --write must not leave half a config behind. With
    # newline='', the line ends of the source stay unchanged.
    with atomic_write(path) as aside, open(
        aside, 'w', encoding='utf-8', newline=''
    ) as file:
        file.write(text)
    print(f'\nwritten: {path}')


def write_one(args: argparse.Namespace) -> int:
    """Convert one config to one file; return the exit status."""
    from mmnanguard.migrate import flatten, migrate
    from mmnanguard.optim.apply_guard import load_overlay

    (path,) = args.config
    make = migrate
    if args.flatten:
        make = flatten
    migrated = make(path, load_overlay, args.guard)
    show(migrated, path)
    if args.out and args.out.suffix == '.py':
        write(args.out, migrated.new)
    elif args.out:
        write(args.out / path.name, migrated.new)
    return int(bool(migrated.notes.left))


def write_tree(args: argparse.Namespace) -> int:
    """Convert configs and their bases; return the exit status."""
    from mmnanguard.migrate import migrate_tree
    from mmnanguard.optim.apply_guard import load_overlay

    tree = migrate_tree(
        args.config, load_overlay, args.guard, is_moved=bool(args.out)
    )
    for path, migrated in tree.files.items():
        if migrated.old != migrated.new or migrated.notes.left:
            show(migrated, shown(path))
        if args.out:
            write(args.out / path.relative_to(tree.root), migrated.new)
        elif args.write and migrated.old != migrated.new:
            write(path, migrated.new)
    is_same = all(file.old == file.new for file in tree.files.values())
    if is_same and not tree.refused:
        print('nothing to do here')
    for error in tree.refused.values():
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
    if tree.refused:
        return 2
    return int(any(file.notes.left for file in tree.files.values()))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the tool; return its exit status."""
    args = parse_args(argv)
    # libcst is needed for this tool only and is not installed by default.
    try:
        import mmnanguard.migrate  # noqa: F401
    except ImportError as error:
        print(f'{error}: pip install libcst', file=sys.stderr)
        return 2
    from mmnanguard._tool_parser import run_tool

    is_one = args.flatten or (args.out and args.out.suffix == '.py')
    return run_tool(write_one if is_one else write_tree, args)


def shown(path: Path) -> Path:
    """Return a path as it is seen from the current folder."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


if __name__ == '__main__':
    sys.path[:0] = [str(ROOT)]
    sys.exit(main())
