"""Compare training at a too high learning rate, guarded and unguarded.

Trains configs/digits/diverging_fp16.py three times for each seed: under
MMEngine's own wrapper, with --guard full, and under MMEngine's own wrapper
with a sensible learning rate. Prints a table, and draws the first seed. On a
CPU, which MMEngine's AmpOptimWrapper refuses, MMEngine's step and a
GradScaler of the CPU take its place (tests/baseline.py).

Example:
    python benchmarks/divergence.py --seeds 0 1 2 --picture diverging.svg
"""

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib import pyplot
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table
from save_figure import save_figure

from mmnanguard.core.rows.event_files import events_file

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs' / 'digits' / 'diverging_fp16.py'
WELL_TUNED = 0.2  # OneCycleLR's eta_max
KINDS = {
    'unguarded': 'tab:red',
    'guarded': 'tab:blue',
    'well tuned': 'tab:gray',
}
NUMBERS = itertools.count()  # MMEngine needs a unique name for each run


class Trained(NamedTuple):
    """A finished run."""

    accuracy: list  # in percent, after each epoch
    losses: list  # of each iteration
    rows: list  # the guard's events
    runner: Runner


def make_config(kind, guard='full'):
    """Return the config of a kind of run."""
    from mmnanguard import apply_guard

    cfg = Config.fromfile(CONFIG)
    if kind == 'guarded':
        return apply_guard(cfg, guard)
    if kind == 'well tuned':
        cfg.param_scheduler[0].eta_max = WELL_TUNED
    if get_device() == 'cpu':
        cfg.optim_wrapper.type = 'CpuAmpOptimWrapper'
    return cfg


def train_one(cfg, seed, work_dir):
    """Train a config with a seed."""
    import baseline  # noqa: F401  registers CpuAmpOptimWrapper

    cfg.randomness = dict(seed=seed)
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = f'divergence_{next(NUMBERS)}'
    cfg.default_hooks.checkpoint = None
    cfg.log_level = 'ERROR'
    runner = Runner.from_cfg(cfg)
    runner.train()
    file = events_file(runner.log_dir)
    lines = file.read_text().splitlines() if file.exists() else []
    scalars = runner.message_hub.log_scalars
    return Trained(
        [float(value) for value in scalars['val/accuracy'].data[0]],
        [float(value) for value in scalars['train/loss'].data[0]],
        [json.loads(line) for line in lines],
        runner,
    )


def describe_rollbacks(trained):
    """Describe the rollbacks of a run in a few words."""
    return ', '.join(
        f'{row["iter"]} back to {row["to"]}, LR x {row["lr_factor"]:g}'
        for row in trained.rows
        if row['kind'] == 'rollback'
    )


def draw(runs, path):
    """Draw the losses and accuracies of a seed, and its rollbacks."""
    figure, (top, bottom) = pyplot.subplots(
        2, sharex=True, figsize=(7, 5.5), layout='constrained'
    )
    for kind, run in runs.items():
        color = KINDS[kind]
        length = len(run.losses) / len(run.accuracy)  # iterations per epoch
        # Single losses would cover one another: draw medians of thirds of an
        # epoch.
        span = int(length / 3)
        starts = range(0, len(run.losses), span)
        middles = [(start + span / 2) / length for start in starts]
        losses = torch.tensor(run.losses)
        levels = [losses[i : i + span].median().item() for i in starts]
        top.plot(middles, levels, color=color, label=kind)
        epochs = range(1, len(run.accuracy) + 1)
        bottom.plot(epochs, run.accuracy, '.-', color=color, label=kind)
        skips = [
            row['iter'] for row in run.rows if row.get('action') == 'skip'
        ]
        if skips:
            top.plot(
                [number / length for number in skips],
                [0] * len(skips),
                '|',
                color=color,
                markersize=10,
                label='update skipped',
            )
        for row in run.rows:
            if row['kind'] == 'rollback':
                where, to = row['iter'] / length, row['to'] / length
                label = f'rollback, learning rate x {row["lr_factor"]:g}'
                for axes in (top, bottom):
                    axes.axvline(where, color=color, linestyle=':')
                    axes.axvspan(to, where, color=color, alpha=0.12, lw=0)
                top.plot([], [], ':', color=color, label=label)
    top.set_ylabel('training loss (cross entropy)')
    top.set_ylim(-0.15, 3.2)
    bottom.set_ylabel('validation accuracy (%)')
    bottom.set_ylim(0, 103)
    bottom.axhline(10, color='black', lw=0.5)
    bottom.annotate('chance', (0.05, 11.5), fontsize='small')
    bottom.set_xlabel('epoch')
    bottom.set_xlim(0, len(run.accuracy) + 0.1)
    figure.legend(
        *top.get_legend_handles_labels(), loc='outside upper center', ncols=3
    )
    save_figure(figure, path)
    pyplot.close(figure)


def main(argv=None):
    """Run the comparison; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--picture', help='an .svg')
    args = parser.parse_args(argv)
    sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
    table = Table('seed', 'run', 'accuracy (%) after each epoch', 'rollbacks')
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            runs = {}
            for kind in KINDS:
                run = train_one(make_config(kind), seed, folder)
                runs[kind] = run
                accuracies = ' '.join(f'{value:.1f}' for value in run.accuracy)
                cells = str(seed), kind, accuracies, describe_rollbacks(run)
                print(*cells, sep=' | ', flush=True)
                table.add_row(*cells)
            if args.picture and seed == args.seeds[0]:
                draw(runs, args.picture)
    Console().print(table)
    return 0


if __name__ == '__main__':
    sys.exit(main())
