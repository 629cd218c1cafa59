r"""Run a dumped update again, and say where it goes bad.

Reads what ``BatchDumpHook`` wrote, on a CPU or a GPU. The model is built from
the config in the dump; the weights come from --checkpoint, or from the dump
if it was made with save_weights=True. The same is written as JSON.

The config in the dump is read as data. Modules that it names, such as those
of its custom_imports, are imported by name from where Python finds modules
(here, and PYTHONPATH); no code of the dump is run unless --allow-pickle.

Example:
    python tools/replay.py work_dirs/x/nanguard/dumps/iter_250_rank0.pt \
        --checkpoint work_dirs/x/iter_249.pth --bisect
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('dump', type=Path)
    parser.add_argument('--config', help="a file, in place of the dump's own")
    parser.add_argument('--checkpoint', help='a file with the weights')
    told = 'find a smallest set of samples that still goes bad'
    parser.add_argument('--bisect', action='store_true', help=told)
    default = 'cuda' if torch.cuda.is_available() else 'cpu'
    parser.add_argument('--device', default=default, help=f'here: {default}')
    told = (
        'trust the dump: open pickled objects of the batch and build any '
        'type its config names; both can run any code'
    )
    parser.add_argument('--allow-pickle', action='store_true', help=told)
    told = 'default: beside the dump, with .json'
    parser.add_argument('--json', type=Path, metavar='FILE', help=told)
    return parser.parse_args(argv)


def place_of_json(args):
    """Where to write; tried before the work."""
    from mmnanguard.core import NanGuardError

    if not args.dump.is_file():
        raise NanGuardError(
            f'{args.dump} is no file. Dumps lie under a work_dir in '
            '<timestamp>/nanguard/dumps.'
        )
    path = args.json or args.dump.with_suffix('.json')
    is_new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open('a').close()
    except OSError as error:
        raise NanGuardError(
            f'{path} cannot be written ({error}). Name a file with --json in '
            'a folder of yours.'
        ) from error
    if is_new:
        path.unlink()
    return path


def bisect(examination):
    """Names of a smallest set of samples, and how many sets could not be run;
    says each try, for it takes long.
    """
    from mmnanguard._support.smallest_subset import smallest_subset

    names = examination.samples
    errors = {}

    def fails(samples):
        try:
            is_bad = not examination.of(samples).run().is_finite
        except Exception as error:  # BatchNorm wants more than one value, say
            errors[tuple(samples)] = error
            print(f'  {len(samples)} of {len(names)} samples: {error}')
            return False
        told = 'bad' if is_bad else 'finite'
        print(f'  {len(samples)} of {len(names)} samples: {told}', flush=True)
        return is_bad

    smallest = [
        names[sample] for sample in smallest_subset(range(len(names)), fails)
    ]
    print('a smallest set that goes bad:', *smallest, sep='\n  ')
    if errors:
        print(
            f'{len(errors)} set{"s" * (len(errors) > 1)} could not be run '
            f'({"; ".join(sorted(set(map(str, errors.values()))))}): '
            'the set may be larger than needed'
        )
    return dict(smallest=smallest, not_run=len(errors))


def show_outputs(outputs):
    table = Table('module', 'min', 'max', 'is finite')
    for name, seen in outputs.items():
        table.add_row(
            name,
            f'{seen["min"]:.4g}',
            f'{seen["max"]:.4g}',
            str(seen['is_finite']),
        )
    Console(markup=False).print(table)


def run(args):
    from mmnanguard.core.rows.json_numbers import to_json
    from mmnanguard.hooks._shared.versions import versions
    from mmnanguard.hooks.replay.dump_replay import open_dump

    json_path = place_of_json(args)
    case = open_dump(
        args.dump, args.config, args.checkpoint, args.device, args.allow_pickle
    )
    event, then, now = case.event, case.dump['versions'], versions()
    for name in now:
        if then.get(name) != now[name]:
            print(f'{name} was {then.get(name)} and is {now[name]} here')
    print(
        f'Iter {event.iter}, optimizer {event.optimizer!r}, rank '
        f'{case.dump["rank"]}: {event.cause.value}, loss {event.loss}; '
        f'now on {args.device}'
    )
    found = case.autopsy()
    print(found.line(event.iter))
    if event.spike:
        print('(a spike: finite numbers, of which an autopsy knows nothing)')
    doubts = [*case.doubts]
    if not found.exact and not doubts:
        doubts = ['the loss is not that of training, or the batch has changed']
    for doubt in doubts:
        print(f'inexact: {doubt}')
    show_outputs(found.outputs)
    row = dict(found.to_row(), device=args.device, versions=now)
    if args.bisect and found.repeats:
        row.update(bisect(case.examination))
    json_path.write_text(to_json(row) + '\n', encoding='utf-8')
    print(f'written to {json_path}')


def main(argv=None):
    # As where a run is started: a config's own modules lie there.
    sys.path[:0] = [str(ROOT), os.getcwd()]
    args = parse_args(argv)
    from mmnanguard.core import NanGuardError

    try:
        run(args)
    except NanGuardError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
