"""Run five documented failures: as reported, guarded, cured, and with the
cures that the reports propose.

Runs configs/cases on a CPU, some seconds each, and prints the outcomes.
Exit status 1: an outcome is not as configs/cases/documented.py has it.

Example:
    python tools/cases.py
    python tools/cases.py masked_attention --runs plain guarded
"""

import contextlib
import json
import math
import re
import sys
import tempfile
from operator import itemgetter
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
)

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import Runner
from torch import Tensor, nn

from mmnanguard.core.rows.event_files import events_file

ROOT = Path(__file__).resolve().parents[1]
CASES = ROOT / 'configs' / 'cases'
COLUMNS = 'plain', 'guarded', 'cured', 'culprit', 'reported'
# The history of each logged scalar, by name.
Scalars = Mapping[str, HistoryBuffer]
# The outcome of a run by key; run() has the keys.
Outcome = Dict[str, Any]
# A row of the events of a run.
Row = Dict[str, Any]


class Recorder(Hook):
    """A hook that records losses, and updates that changed no weight.

    Attributes:
        losses: The loss of each iteration.
        lost: The number of iterations that changed no weight.
        bad_from: The first iteration, from 1, after which a weight was not
            finite; None if there is none.
    """

    # After all other hooks, which may still change the weights.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self.losses: List[float] = []
        self.lost = 0
        self.bad_from: Optional[int] = None

    def before_train(self, runner: Runner) -> None:
        """Remember the initial weights."""
        self.weights = flat(runner.model)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: object,
        outputs: Mapping[str, Tensor],
    ) -> None:
        """Record the loss, and whether the weights have changed."""
        self.losses.append(outputs['loss'].item())
        weights = flat(runner.model)
        self.lost += torch.equal(weights, self.weights)
        self.weights = weights
        if self.bad_from is None and not weights.isfinite().all():
            self.bad_from = runner.iter + 1


def flat(model: nn.Module) -> Tensor:
    """Return a copy of all parameters, of shape (number of weights,)."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def count_bad(tensors: Iterable[Tensor]) -> int:
    """Count the tensors that have a NaN or an Inf."""
    return sum(not bool(tensor.isfinite().all()) for tensor in tensors)


def moments_of(optimizer: torch.optim.Optimizer) -> List[Tensor]:
    """Return the tensors of an optimizer's state, except its counters."""
    moments = []
    for state in optimizer.state.values():
        for key, value in state.items():
            # SGD without momentum keeps None.
            if key != 'step' and value is not None:
                moments.append(value)
    return moments


def run(path: Path, work_dir: str) -> Outcome:
    """Train a config and return the outcome."""
    cfg = Config.fromfile(path)
    cfg.work_dir = str(work_dir)
    # MMEngine refuses a name that this process has used already.
    cfg.experiment_name = cfg.work_dir
    cfg.log_level = 'WARNING'
    runner, recorder = Runner.from_cfg(cfg), Recorder()
    runner.register_hook(recorder)
    raised = ''
    # A halt of the guard and anomaly mode both raise a RuntimeError.
    try:
        runner.train()
    except RuntimeError as error:
        raised = f'Iter {runner.iter + 1}: {error}'.splitlines()[0]
    rows = read_events(runner.log_dir)
    updates = [row for row in rows if row['kind'] == 'update']
    scalars = runner.message_hub.log_scalars
    return dict(
        raised=raised,
        first_nan=first_nonfinite(recorder.losses),
        bad_from=recorder.bad_from,
        bad_weights=count_bad(runner.model.parameters()),
        bad_buffers=count_bad(runner.model.buffers()),
        bad_moments=count_bad(moments_of(runner.optim_wrapper.optimizer)),
        lost=recorder.lost,
        lr_left=lr_left(cfg, scalars),
        top_loss=max(filter(math.isfinite, recorder.losses)),
        top_norm=chosen(scalars, 'train/grad_norm', max),
        late_norm=chosen(scalars, 'train/grad_norm', late_median),
        error=chosen(scalars, 'val/error', lambda values: values[-1]),
        is_guarded=bool(rows),
        events=len(updates),
        skips=list(map(itemgetter('action'), updates)).count('skip'),
        dumps=list(map(itemgetter('kind'), rows)).count('dump'),
        culprit='; '.join(culprits(rows) + left_out(runner.log_dir)),
        losses=recorder.losses,
        rows=rows,
    )


def read_events(log_dir: str) -> List[Row]:
    """Return the rows of a run's events; [] for a run without a guard."""
    file = events_file(log_dir)
    if not file.exists():
        return []
    return list(map(json.loads, file.read_text().splitlines()))


def first_nonfinite(losses: Iterable[float]) -> Optional[int]:
    """Return the first iteration, from 1, with a bad loss; None without."""
    for iteration, loss in enumerate(losses, 1):
        if not math.isfinite(loss):
            return iteration
    return None


def chosen(
    scalars: Scalars, key: str, choose: Callable[[np.ndarray], float]
) -> Optional[float]:
    """Return a value of a scalar's history; None if it was never logged."""
    if key not in scalars:
        return None
    return float(choose(scalars[key].data[0]))


def late_median(values: np.ndarray) -> float:
    """Return the median of the second half of the values."""
    return float(np.median(values[len(values) // 2 :]))


def lr_left(cfg: Config, scalars: Scalars) -> float:
    """Return the last learning rate as a share of the schedule's.

    It is below 1 if a remedy has lowered the rate.
    """
    rates = scalars['train/lr'].data[0]
    # The schedule is run again on an optimizer that no remedy touches.
    bare = OptimWrapper(
        torch.optim.SGD([torch.zeros(1)], cfg.optim_wrapper.optimizer.lr)
    )
    for spec in cfg.get('param_scheduler', []):
        scheduler = PARAM_SCHEDULERS.build(
            dict(spec), default_args=dict(optimizer=bare)
        )
        for _ in rates[1:]:
            # A scheduler warns if it steps before its optimizer.
            bare.step()
            scheduler.step()
    return float(rates[-1] / bare.param_groups[0]['lr'])


def culprits(rows: Iterable[Row]) -> List[str]:
    """Return the culprits that the guard named, each once."""
    # The first sample that was named with a culprit, or ''.
    samples: Dict[str, str] = {}
    for row in rows:
        sample = (row.get('samples') or [''])[0]
        if row['kind'] == 'autopsy':
            culprit = row['op']
            if row['module']:
                culprit = (
                    f"'{row['module']}' ({row['module_type']}, {row['op']})"
                )
            samples.setdefault(culprit, sample)
        elif row['kind'] == 'update':
            if row['cause'] == 'grad_nonfinite':
                bad = row['params'][0]
                kind = bad['kind'].capitalize()
                samples.setdefault(
                    f"gradient of '{bad['name']}' is {kind}", sample
                )
            if row['cause'] == 'spike':
                samples[f'norm {row["grad_norm"]:.1f}'] = sample
            for name, seen in row['watched'].items():
                values = 'is not finite'
                if seen['is_finite']:
                    values = f'from {seen["min"]:g} to {seen["max"]:.1f}'
                samples[f'{name} {values}'] = ''
        elif row['kind'] == 'audit':
            bad = row['tensors'][0]
            samples[f"'{bad['name']}' ({bad['tensor']})"] = ''
    named = []
    for culprit, sample in samples.items():
        if sample:
            culprit = f'{culprit}: {sample}'
        named.append(culprit)
    return named


def left_out(log_dir: str) -> List[str]:
    """Return the samples that ValidateSample reported in the log."""
    (log,) = Path(log_dir).glob('*.log')
    return re.findall(r'ValidateSample: (.* is bad: .*) \(', log.read_text())


def describe(came: Outcome) -> str:
    """Describe the outcome of a run in a few words."""
    if came['raised']:
        return str(came['raised'])
    facts = []
    if came['bad_from']:
        bad = 'weights'
        if came['bad_moments']:
            bad = 'weights and moments'
        facts.append(f'{bad} NaN from iteration {came["bad_from"]} on')
    elif came['bad_moments']:
        facts.append(f'moments NaN from iteration {came["first_nan"]} on')
    if came['bad_buffers']:
        facts.append(f'{came["bad_buffers"]} running statistics NaN')
    # A skip changes no weight, either.
    if came['lost'] > came['skips']:
        facts.append(f'{came["lost"]} updates that changed no weight')
    if came['skips']:
        facts.append(f'{came["skips"]} skipped')
    # The cases have no other events than skips and spikes.
    if came['events'] > came['skips']:
        facts.append(f'{came["events"] - came["skips"]} spikes')
    if came['is_guarded']:
        if not came['events']:
            facts.append('no event')
        facts.append(f'norm {came["late_norm"]:.2g}')
    if came['top_loss'] > 1e6:
        facts.append(f'loss up to {came["top_loss"]:.1g}')
    if came['lr_left'] < 0.99:
        facts.append(f'learning rate x {came["lr_left"]:.2g}')
    if came['error'] is not None:
        facts.append(f'error {came["error"]:.2g}')
    return ', '.join(facts)


def differences(came: Outcome, documented: Mapping[str, Any]) -> List[str]:
    """Return the differences between an outcome and the documented one.

    Args:
        came: The outcome.
        documented: The expected values by key: a value, the lowest and the
            highest, 'nan', or words that a text must have.
    """
    messages = []
    for key, expected in documented.items():
        value = came[key]
        if key in ('culprit', 'raised'):
            is_right = all(map(value.__contains__, expected))
        elif isinstance(expected, (list, tuple)):
            low, high = expected
            is_right = value is not None and low <= value <= high
        elif expected == 'nan':
            is_right = value is not None and math.isnan(value)
        else:
            is_right = value == expected
        if not is_right:
            messages.append(f'{key} is {value!r}, documented is {expected!r}')
    return messages


def run_case(
    case: str, names: Optional[Sequence[str]] = None
) -> Dict[str, Outcome]:
    """Return the outcomes of a case's runs, by the names of the runs.

    Args:
        case: The name of a case.
        names: The runs; None means all.

    Returns:
        Outcomes, with 'differences' from the documented ones.
    """
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


def load_documented() -> Dict[str, Any]:
    """Return the documented outcomes, by case and by run."""
    documented: Dict[str, Any] = Config.fromfile(
        CASES / 'documented.py'
    ).to_dict()
    return documented


def row_of(case: str, outcomes: Mapping[str, Outcome]) -> List[str]:
    """Return the cells of a case's row in the table.

    A run's name begins with its column; its rest stands before the outcome.
    """
    cells = dict.fromkeys(COLUMNS, '')
    for name, came in outcomes.items():
        kind, _, rest = name.partition('_')
        # A name without a column, such as 'anomaly', is shown as a whole.
        if kind not in cells:
            kind, rest = 'plain', name
        text = describe(came)
        if rest:
            text = f'`{rest}`: {text}'
        if cells[kind]:
            text = f'{cells[kind]}; {text}'
        cells[kind] = text
        if name == 'guarded':
            cells['culprit'] = came['culprit']
    return [case, *cells.values()]


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """Return the rows as a table in Markdown."""
    head = ['case', *COLUMNS]
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the cases; return the exit status."""
    from mmnanguard._tables import print_table
    from mmnanguard._tool_parser import ToolParser

    parser = ToolParser(__doc__)
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
        for name, came in outcomes.items():
            for difference in came['differences']:
                wrong.append(f'{case}/{name}: {difference}')
    if args.markdown:
        print(markdown(rows))
    else:
        print_table(('case', *COLUMNS), rows, has_lines=True)
    for difference in wrong:
        print(f'NOT AS DOCUMENTED: {difference}')
    return int(bool(wrong))


if __name__ == '__main__':
    sys.exit(main())
