"""Five documented failures: as reported, guarded, cured, and what the
reports' own cures do.

Runs configs/cases on a CPU, some seconds each, and prints what came of it.
Exit status 1: something is not as configs/cases/documented.py has it.

Example:
    python tools/cases.py
    python tools/cases.py masked_attention --runs plain guarded
"""

import argparse
import contextlib
import json
import math
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table

from mmnanguard.core.rows.event_files import events_file

ROOT = Path(__file__).resolve().parents[1]
CASES = ROOT / 'configs' / 'cases'
COLUMNS = 'plain', 'guarded', 'cured', 'culprit', 'reported'


class Recorder(Hook):
    """What each iteration left behind."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.losses: List[float] = []
        self.lost = 0
        self.bad_from = None

    def before_train(self, runner) -> None:
        self.weights = flat(runner.model)

    def after_train_iter(self, runner, batch_idx, data_batch, outputs) -> None:
        self.losses.append(outputs['loss'].item())
        weights = flat(runner.model)
        self.lost += torch.equal(weights, self.weights)
        self.weights = weights
        if self.bad_from is None and not weights.isfinite().all():
            self.bad_from = runner.iter + 1


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def count_bad(tensors):
    return sum(not tensor.isfinite().all() for tensor in tensors)


def run(path, work_dir) -> Dict[str, Any]:
    """Train one config; what came of it."""
    cfg = Config.fromfile(path)
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = cfg.work_dir  # must be new to MMEngine
    cfg.log_level = 'WARNING'
    runner, recorder = Runner.from_cfg(cfg), Recorder()
    runner.register_hook(recorder)
    raised = ''
    try:
        runner.train()
    except RuntimeError as error:
        raised = f'Iter {runner.iter + 1}: {error}'.splitlines()[0]
    file = events_file(runner.log_dir)
    lines = file.read_text().splitlines() if file.exists() else []
    rows = [json.loads(line) for line in lines]
    updates = [row for row in rows if row['kind'] == 'update']
    scalars = runner.message_hub.log_scalars
    optimizer = runner.optim_wrapper.optimizer
    moments = [
        value
        for state in optimizer.state.values()
        for key, value in state.items()
        if key != 'step' and value is not None
    ]
    is_nan = [not math.isfinite(loss) for loss in recorder.losses]
    return dict(
        raised=raised,
        first_nan=is_nan.index(True) + 1 if any(is_nan) else None,
        bad_from=recorder.bad_from,
        bad_weights=count_bad(runner.model.parameters()),
        bad_buffers=count_bad(runner.model.buffers()),
        bad_moments=count_bad(moments),
        lost=recorder.lost,
        lr_left=lr_left(cfg, scalars),
        top_loss=max(filter(math.isfinite, recorder.losses)),
        top_norm=chosen(scalars, 'train/grad_norm', max),
        late_norm=chosen(scalars, 'train/grad_norm', late_median),
        error=chosen(scalars, 'val/error', lambda values: values[-1]),
        is_guarded=bool(rows),
        events=len(updates),
        skips=sum(row['action'] == 'skip' for row in updates),
        dumps=sum(row['kind'] == 'dump' for row in rows),
        culprit='; '.join(culprits(rows) + left_out(runner.log_dir)),
        losses=recorder.losses,
        rows=rows,
    )


def chosen(scalars, key, choose):
    return float(choose(scalars[key].data[0])) if key in scalars else None


def late_median(values):
    return np.median(values[len(values) // 2 :])


def lr_left(cfg, scalars):
    """The learning rate of the last iteration, as a part of what the schedule
    gives by itself.
    """
    rates = scalars['train/lr'].data[0]
    bare = OptimWrapper(
        torch.optim.SGD([torch.zeros(1)], cfg.optim_wrapper.optimizer.lr)
    )
    for spec in cfg.get('param_scheduler', []):
        scheduler = PARAM_SCHEDULERS.build(
            dict(spec), default_args=dict(optimizer=bare)
        )
        for _ in rates[1:]:
            bare.step()
            scheduler.step()
    return float(rates[-1] / bare.param_groups[0]['lr'])


def culprits(rows) -> List[str]:
    """What the guard named, each once."""
    told = {}
    for row in rows:
        samples = row.get('samples') or ['']
        if row['kind'] == 'autopsy':
            who = f"'{row['module']}' ({row['module_type']}, {row['op']})"
            told.setdefault(who if row['module'] else row['op'], samples[0])
        elif row['kind'] == 'update':
            if row['cause'] == 'grad_nonfinite':
                bad = row['params'][0]
                kind = bad['kind'].capitalize()
                what = f"gradient of '{bad['name']}' is {kind}"
                told.setdefault(what, samples[0])
            if row['cause'] == 'spike':
                told[f'norm {row["grad_norm"]:.1f}'] = samples[0]
            for name, seen in row['watched'].items():
                what = 'is not finite'
                if seen['is_finite']:
                    what = f'from {seen["min"]:g} to {seen["max"]:.1f}'
                told[f'{name} {what}'] = ''
        elif row['kind'] == 'audit':
            bad = row['tensors'][0]
            told[f"'{bad['name']}' ({bad['tensor']})"] = ''
    return [
        f'{what}: {sample}' if sample else what
        for what, sample in told.items()
    ]


def left_out(log_dir) -> List[str]:
    """What ValidateSample said."""
    (log,) = Path(log_dir).glob('*.log')
    return re.findall(r'ValidateSample: (.* is bad: .*) \(', log.read_text())


def tell(came) -> str:
    """The outcome of a run in a few words."""
    if came['raised']:
        return came['raised']
    told = []
    if came['bad_from']:
        what = 'weights and moments' if came['bad_moments'] else 'weights'
        told.append(f'{what} NaN from iteration {came["bad_from"]} on')
    elif came['bad_moments']:
        told.append(f'moments NaN from iteration {came["first_nan"]} on')
    if came['bad_buffers']:
        told.append(f'{came["bad_buffers"]} running statistics NaN')
    if came['lost'] > came['skips']:
        told.append(f'{came["lost"]} updates that changed no weight')
    if came['skips']:
        told.append(f'{came["skips"]} skipped')
    if came['events'] > came['skips']:
        told.append(f'{came["events"] - came["skips"]} spikes')
    if came['is_guarded']:
        if not came['events']:
            told.append('no event')
        told.append(f'norm {came["late_norm"]:.2g}')
    if came['top_loss'] > 1e6:
        told.append(f'loss up to {came["top_loss"]:.1g}')
    if came['lr_left'] < 0.99:
        told.append(f'learning rate x {came["lr_left"]:.2g}')
    if came['error'] is not None:
        told.append(f'error {came["error"]:.2g}')
    return ', '.join(told)


def differences(came, documented) -> List[str]:
    found = []
    for key, expected in documented.items():
        value = came[key]
        if key in ('culprit', 'raised'):
            is_right = all(word in value for word in expected)
        elif isinstance(expected, (list, tuple)):
            low, high = expected
            is_right = value is not None and low <= value <= high
        elif expected == 'nan':
            is_right = value is not None and math.isnan(value)
        else:
            is_right = value == expected
        if not is_right:
            found.append(f'{key} is {value!r}, documented is {expected!r}')
    return found


def run_case(case, names=None) -> Dict[str, Dict[str, Any]]:
    """Outcomes of a case's runs, by name; 'differences' are in each."""
    documented = load_documented()[case]
    outcomes = {}
    for name in names or documented:
        print(f'{case}/{name}', file=sys.stderr, flush=True)
        # MMEngine's console lines are progress, not the table.
        with tempfile.TemporaryDirectory() as folder, (
            contextlib.redirect_stdout(sys.stderr)
        ):
            came = run(CASES / case / f'{name}.py', folder)
        came['differences'] = differences(came, documented[name])
        outcomes[name] = came
    return outcomes


def load_documented():
    return Config.fromfile(CASES / 'documented.py').to_dict()


def row_of(case, outcomes) -> List[str]:
    """The table's cells: runs of a kind, each by the rest of its name."""
    cells = dict.fromkeys(COLUMNS, '')
    for name, came in outcomes.items():
        kind, _, rest = name.partition('_')
        kind = kind if kind in cells else 'plain'
        rest = rest if name.startswith(kind) else name
        text = f'`{rest}`: {tell(came)}' if rest else tell(came)
        cells[kind] += f'; {text}' if cells[kind] else text
        if name == 'guarded':
            cells['culprit'] = came['culprit']
    return [case, *cells.values()]


def markdown(rows) -> str:
    head = ['case', *COLUMNS]
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    documented = load_documented()
    parser.add_argument('cases', nargs='*', metavar='CASE')
    parser.add_argument('--runs', nargs='+', help='such as plain guarded')
    parser.add_argument('--markdown', action='store_true')
    args = parser.parse_args(argv)
    for case in args.cases:
        if case not in documented:
            parser.error(f'{case!r} is no case: {", ".join(documented)}')
    sys.path[:0] = [str(ROOT)]  # for the configs' own modules
    rows, wrong = [], []
    for case in args.cases or documented:
        outcomes = run_case(case, args.runs)
        rows.append(row_of(case, outcomes))
        wrong += [
            f'{case}/{name}: {difference}'
            for name, came in outcomes.items()
            for difference in came['differences']
        ]
    if args.markdown:
        print(markdown(rows))
    else:
        table = Table('case', *COLUMNS, show_lines=True)
        for row in rows:
            table.add_row(*row)
        Console(markup=False).print(table)
    for difference in wrong:
        print(f'NOT AS DOCUMENTED: {difference}')
    return int(bool(wrong))


if __name__ == '__main__':
    sys.exit(main())
