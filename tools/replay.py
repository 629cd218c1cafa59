r"""Run a dumped update again, and say where it goes bad.

Reads a dump of ``BatchDumpHook``, on a CPU or a GPU. The model is built from
the config in the dump; the weights come from --checkpoint, or from the dump
if it was made with save_weights=True. The result is also written as JSON.

The config in the dump is read as data. Modules that it names, such as those
of its custom_imports, are imported by name from where Python finds modules
(here, and PYTHONPATH); no code of the dump is run unless --allow-pickle.
Exit status: 0 if the update is finite here, 1 if the fault occurs again, 2
with a line of text if the file cannot be replayed.

Example:
    python tools/replay.py work_dirs/x/nanguard/dumps/iter_250_rank0.pt \
        --checkpoint work_dirs/x/iter_249.pth --bisect
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence

import torch

if TYPE_CHECKING:
    from mmnanguard.hooks.replay.window_replay import WindowReplay

ROOT = Path(__file__).resolve().parents[1]


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line."""
    from mmnanguard._tool_parser import ToolParser

    parser = ToolParser(__doc__)
    parser.add_argument('dump', type=Path)
    parser.add_argument('--config', help="a file, in place of the dump's own")
    parser.add_argument('--checkpoint', help='a file with the weights')
    parser.add_argument(
        '--bisect',
        action='store_true',
        help='find a smallest set of samples that still goes bad',
    )
    default = 'cuda' if torch.cuda.is_available() else 'cpu'
    parser.add_argument('--device', default=default, help=f'here: {default}')
    parser.add_argument(
        '--allow-pickle',
        action='store_true',
        help='trust the dump: open pickled objects of the batch and build '
        'any type its config names; both can run any code',
    )
    parser.add_argument(
        '--json',
        type=Path,
        metavar='FILE',
        help='default: beside the dump, with .json',
    )
    return parser.parse_args(argv)


def place_of_json(args: argparse.Namespace) -> Path:
    """Return the path of the JSON file, and check that it can be written.

    Called before the replay, which may take long.

    Raises:
        NanGuardError: If there is no dump, or the file cannot be written.
    """
    from mmnanguard.core import NanGuardError

    if not args.dump.is_file():
        raise NanGuardError(
            f'{args.dump} is no file. Dumps lie under a work_dir in '
            '<timestamp>/nanguard/dumps.'
        )
    path: Path = args.json or args.dump.with_suffix('.json')
    # Only opening it for writing shows whether the file can be written.
    is_new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open('a').close()
    except OSError as error:
        raise NanGuardError(
            f'{path} cannot be written ({error}). Name a file with --json in '
            'a folder of yours.'
        ) from error
    # A replay that fails must leave no empty file behind.
    if is_new:
        path.unlink()
    return path


def bisect(window_replay: 'WindowReplay') -> Dict[str, object]:
    """Search a smallest set of samples that goes bad.

    Prints each attempt, as the search may take long.

    Args:
        window_replay: The replay of the dumped window.

    Returns:
        The names of the samples as 'smallest', and as 'not_run' the number
        of sets that could not be run.
    """
    from mmnanguard._support.escape import escape
    from mmnanguard._support.smallest_subset import smallest_subset

    names = window_replay.samples
    errors = {}

    def fails(samples: List[int]) -> bool:
        """Replay some samples, and return whether the result is bad."""
        try:
            is_bad = not window_replay.of(samples).run().is_finite
        except Exception as error:
            # BatchNorm, for example, refuses a single value per channel.
            errors[tuple(samples)] = error
            print(f'  {len(samples)} of {len(names)} samples: {escape(error)}')
            return False
        outcome = 'bad' if is_bad else 'finite'
        # Flushed, because each attempt may take a while.
        print(
            f'  {len(samples)} of {len(names)} samples: {outcome}', flush=True
        )
        return is_bad

    subset = smallest_subset(range(len(names)), fails)
    smallest = list(map(names.__getitem__, subset))
    shown = map(escape, smallest)
    print('a smallest set that goes bad:', *shown, sep='\n  ')
    if errors:
        print(
            f'{len(errors)} set{"s" * (len(errors) > 1)} could not be run '
            f'({"; ".join(sorted(set(map(escape, errors.values()))))}): '
            'the set may be larger than needed'
        )
    return dict(smallest=smallest, not_run=len(errors))


def show_outputs(outputs: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the range of each module's output."""
    from mmnanguard._tables import print_table

    rows = []
    for name, seen in outputs.items():
        low, high = f'{seen["min"]:.4g}', f'{seen["max"]:.4g}'
        rows.append([name, low, high, str(seen['is_finite'])])
    print_table(('module', 'min', 'max', 'is finite'), rows)


def run(args: argparse.Namespace) -> int:
    """Replay the dump; return whether the fault occurs again."""
    from mmnanguard._support.escape import escape
    from mmnanguard.core.rows.json_numbers import to_json
    from mmnanguard.hooks._shared.versions import versions
    from mmnanguard.hooks.replay.dump_replay import open_dump

    json_path = place_of_json(args)
    case = open_dump(
        args.dump, args.config, args.checkpoint, args.device, args.allow_pickle
    )
    event, then, now = case.event, case.dump['versions'], versions()
    # Another version may compute other numbers.
    for name in now:
        if then.get(name) != now[name]:
            was = escape(then.get(name))
            print(f'{name} was {was} and is {now[name]} here')
    print(
        f'Iter {event.iter}, optimizer {event.optimizer!r}, rank '
        f'{case.dump["rank"]}: {event.cause.value}, loss {event.loss}; '
        f'now on {args.device}'
    )
    autopsy = case.autopsy()
    print(autopsy.line(event.iter))
    if event.spike:
        print('(a spike: finite numbers, of which an autopsy knows nothing)')
    doubts = [*case.doubts]
    if not autopsy.exact and not doubts:
        doubts = ['the loss is not that of training, or the batch has changed']
    for doubt in doubts:
        print(escape(f'inexact: {doubt}'))
    show_outputs(autopsy.outputs)
    row = dict(autopsy.to_row(), device=args.device, versions=now)
    # A fault that does not occur here cannot be narrowed down by replays.
    if args.bisect and autopsy.repeats:
        row.update(bisect(case.window_replay))
    json_path.write_text(to_json(row) + '\n', encoding='utf-8')
    print(escape(f'written to {json_path}'))
    return int(autopsy.repeats)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the tool; return its exit status."""
    # The folder in which a run is started has the config's own modules.
    sys.path[:0] = [str(ROOT), os.getcwd()]
    args = parse_args(argv)
    from mmnanguard._tool_parser import run_tool

    return run_tool(run, args)


if __name__ == '__main__':
    sys.exit(main())
