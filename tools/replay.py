r"""Run a dumped update again, and say where it goes bad.

Reads what ``BatchDumpHook`` wrote, on a CPU or a GPU. The model is built from
the config in the dump; the weights come from --checkpoint, or from the dump
if it was made with save_weights=True. The same is written as JSON.

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
    told = 'open pickled objects of the batch: they can run any code'
    parser.add_argument('--allow-pickle', action='store_true', help=told)
    told = 'default: beside the dump, with .json'
    parser.add_argument('--json', type=Path, metavar='FILE', help=told)
    args = parser.parse_args(argv)
    args.json = args.json or args.dump.with_suffix('.json')
    return args


def bisect(examination):
    """Names of a smallest set of samples; says each try, for it takes long."""
    from mmnanguard.core import smallest_subset

    names = examination.samples

    def fails(samples):
        try:
            is_bad = not examination.of(samples).run().is_finite
        except Exception as error:  # BatchNorm wants more than one value, say
            print(f'  {len(samples)} of {len(names)} samples: {error}')
            return False
        told = 'bad' if is_bad else 'finite'
        print(f'  {len(samples)} of {len(names)} samples: {told}', flush=True)
        return is_bad

    return [
        names[sample] for sample in smallest_subset(range(len(names)), fails)
    ]


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


def main(argv=None):
    # As where a run is started: a config's own modules lie there.
    sys.path[:0] = [str(ROOT), os.getcwd()]
    args = parse_args(argv)
    from mmnanguard.core import NanGuardError, to_json
    from mmnanguard.hooks.dump_replay import open_dump, versions

    try:
        case = open_dump(
            args.dump,
            args.config,
            args.checkpoint,
            args.device,
            args.allow_pickle,
        )
    except NanGuardError as error:
        print(error, file=sys.stderr)
        return 1
    event, then, now = case.dump['event'], case.dump['versions'], versions()
    for name in now:
        if then.get(name) != now[name]:
            print(f'{name} was {then.get(name)} and is {now[name]} here')
    print(
        f'Iter {event["iter"]}, optimizer {event["optimizer"]!r}, rank '
        f'{case.dump["rank"]}: {event["cause"]}, loss {event["loss"]}; '
        f'now on {args.device}'
    )
    found = case.autopsy()
    print(found.line(event['iter']))
    if event['spike']:
        print('(a spike: finite numbers, of which an autopsy knows nothing)')
    doubts = [*case.doubts]
    if not found.exact and not doubts:
        doubts = ['the loss is not that of training, or the batch has changed']
    for doubt in doubts:
        print(f'inexact: {doubt}')
    show_outputs(found.outputs)
    row = dict(found.to_row(), device=args.device, versions=now)
    if args.bisect and found.repeats:
        row['smallest'] = bisect(case.examination)
        print('a smallest set that goes bad:', *row['smallest'], sep='\n  ')
    args.json.write_text(to_json(row) + '\n', encoding='utf-8')
    print(f'written to {args.json}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
