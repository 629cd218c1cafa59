"""Runs of a scenario: without a guard, with the wrapper, and in full."""

import contextlib
import itertools
import json
import math
import os
import tempfile
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import baseline  # noqa: F401, registers CpuAmpOptimWrapper
import torch
from global_state import clear_globals
from mmengine.config import Config
from mmengine.optim import OptimWrapperDict, build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.runner import Runner
from torch import Tensor

from mmnanguard import apply_guard
from mmnanguard.core import GuardConfigError, TrainingHalted
from mmnanguard.report import load_run

from .scenario import SCENARIOS, Scenario

SIDES = ('stock', 'guarded', 'full')
HOOKS = dict(
    nan_guard=dict(type='mmnanguard.NanGuardHook'),
    event_log=dict(type='mmnanguard.EventLogHook'),
)
NUMBERS = itertools.count()  # MMEngine wants each run to have its name


@dataclass
class Run:
    """The outcome of one run of a scenario.

    Attributes:
        start: Loss on the good samples before the first iteration.
        end: The same after the run; NaN if it cannot be computed.
        state: All weights, buffers and tensors of the optimizer.
        bad: Names of those that are not finite and were when the run began.
        error: The exception that ended the run.
        rows: The rows of the event log.
        console: Warnings and errors in the log.
        info: Lines at level INFO about single iterations.
        story: The message of a halt; '' if the run went through.
        advice: Sentence and steps of the report.
    """

    start: float
    end: float
    state: Dict[str, Tensor]
    bad: List[str]
    error: Optional[Exception] = None
    rows: List[Dict[str, Any]] = field(default_factory=list)
    console: List[str] = field(default_factory=list)
    info: List[str] = field(default_factory=list)
    story: str = ''
    advice: str = ''

    @property
    def is_halted(self) -> bool:
        """Whether the guard halted the run."""
        return isinstance(self.error, TrainingHalted)

    @property
    def is_lost(self) -> bool:
        """Whether the run is worth nothing: bad state, or nothing learnt."""
        has_learnt = self.end < self.start - 0.05 * abs(self.start)
        return bool(self.bad) or not has_learnt

    @property
    def text(self) -> str:
        """Everything that the user reads."""
        return '\n'.join([*self.console, *self.info, self.story, self.advice])


@lru_cache(maxsize=None)
def run_all(name: str) -> Dict[str, Run]:
    """Run a scenario on all sides."""
    runs = {}
    for side in SIDES:
        with tempfile.TemporaryDirectory() as work_dir:
            runs[side] = run(SCENARIOS[name], side, work_dir)
    return runs


def run(scenario: Scenario, side: str, work_dir: str) -> Run:
    """Run a scenario on one side."""
    clear_globals()
    with warnings.catch_warnings(), open(os.devnull, 'w') as sink:
        warnings.simplefilter('ignore')
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(
            sink
        ):
            runner = Runner.from_cfg(make_config(scenario, side, work_dir))
            for hook in scenario.hooks():
                runner.register_hook(hook)
            start = measure(scenario, runner.model)
            known = bad_tensors(everything(runner))
            error = train(runner)
            end = measure(scenario, runner.model)
    state = everything(runner)
    bad = sorted(set(bad_tensors(state)) - set(known))
    result = Run(start, end, state, bad, error)
    for level, line in read_log(work_dir):
        if level in ('WARNING', 'ERROR'):
            result.console.append(line)
        elif line.startswith('Iter '):
            result.info.append(line)
    if side != 'stock':
        add_events(result, runner, work_dir)
    clear_globals()
    return result


def make_config(scenario: Scenario, side: str, work_dir: str) -> Config:
    """Return the config of a run."""
    wrapper = dict(type='OptimWrapper', optimizer=dict(scenario.optimizer))
    if scenario.precision != 'float32':
        wrapper['type'] = 'AmpOptimWrapper'
        wrapper['dtype'] = scenario.precision
    wrapper.update(scenario.wrapper)
    if side == 'stock' and scenario.precision != 'float32':
        wrapper['type'] = 'CpuAmpOptimWrapper'
    wrappers = wrapper
    if scenario.parts:
        wrappers = {part: wrapper for part in scenario.parts}
        wrappers['constructor'] = 'WrapperOfEachPart'
    config = Config(
        dict(
            model=dict(type='FieldModel', scenario=scenario.name),
            work_dir=work_dir,
            train_dataloader=dict(
                dataset=dict(type='FieldData', scenario=scenario.name),
                sampler=dict(type='DefaultSampler', shuffle=False),
                collate_fn=dict(type='pseudo_collate'),
                batch_size=scenario.batch_size,
                num_workers=0,
            ),
            train_cfg=dict(
                type='IterBasedTrainLoop', max_iters=scenario.iters
            ),
            optim_wrapper=wrappers,
            param_scheduler=list(scenario.schedule) or None,
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=10**6), checkpoint=None
            ),
            log_processor=dict(by_epoch=False),
            randomness=dict(seed=0),
            experiment_name=f'field_{next(NUMBERS)}',
            default_scope='mmengine',
        )
    )
    if side == 'full':
        return apply_guard(config, 'full')
    if side == 'guarded':
        guard = 'fp32' if scenario.precision == 'float32' else 'fp16'
        dtype = scenario.precision
        config = apply_guard(config, guard)
        if dtype != 'float32' and not scenario.parts:
            config.optim_wrapper.dtype = dtype
        config.merge_from_dict(dict(default_hooks=HOOKS))
    return config


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class WrapperOfEachPart:
    """Builds an optimizer wrapper for each part of a scenario's net."""

    def __init__(
        self, optim_wrapper_cfg: Dict[str, Any], paramwise_cfg: Any = None
    ) -> None:
        self.config = optim_wrapper_cfg

    def __call__(self, model: torch.nn.Module) -> OptimWrapperDict:
        wrappers = {}
        for part in model.scenario.parts:
            wrapper = build_optim_wrapper(model.net[part], self.config[part])
            wrappers[part] = wrapper
        return OptimWrapperDict(**wrappers)


def train(runner: Runner) -> Optional[Exception]:
    """Train, and return the exception that ended the run."""
    try:
        runner.train()
    except Exception as error:
        if isinstance(error, GuardConfigError):
            raise
        return error
    return None


def measure(scenario: Scenario, model: torch.nn.Module) -> float:
    """Return the mean loss on the good samples, in evaluation mode.

    It is NaN if a loss is not finite or cannot be computed.
    """
    indices = [
        index
        for index in range(scenario.num_samples)
        if scenario.is_good(index)
    ]
    samples = [scenario.make_sample(index) for index in indices]
    state = torch.get_rng_state()
    was_training = model.training
    model.eval()
    sums = []
    with torch.no_grad():
        for begin in range(0, len(samples), scenario.batch_size):
            batch = samples[begin : begin + scenario.batch_size]
            sums.append(total_loss(scenario, model, batch))
    model.train(was_training)
    torch.set_rng_state(state)
    if not all(map(math.isfinite, sums)):
        return math.nan
    return math.fsum(sums) / len(sums)


def total_loss(
    scenario: Scenario, model: torch.nn.Module, batch: List[Dict[str, Any]]
) -> float:
    """Return the sum of a batch's losses; NaN if the model refuses it."""
    inputs = [sample['inputs'] for sample in batch]
    data_samples = [sample['data_samples'] for sample in batch]
    try:
        losses = scenario.losses(model.net, inputs, data_samples)
    except ValueError:  # a model may check its own numbers
        return math.nan
    return float(sum(losses[key] for key in losses if 'loss' in key))


def everything(runner: Runner) -> Dict[str, Tensor]:
    """Return copies of all tensors that a run leaves behind, by name."""
    tensors = dict(runner.model.state_dict())
    wrappers = {'': runner.optim_wrapper}
    if isinstance(runner.optim_wrapper, dict):
        wrappers = {}  # a config, before training
    if isinstance(runner.optim_wrapper, OptimWrapperDict):
        wrappers = dict(runner.optim_wrapper.items())
    for part, wrapper in wrappers.items():
        state = wrapper.optimizer.state_dict()['state']
        for index, values in state.items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f'{part} state {index} {key}'] = value
    return {name: tensor.clone() for name, tensor in tensors.items()}


def bad_tensors(tensors: Dict[str, Tensor]) -> List[str]:
    """Return the names of tensors that hold NaN or Inf."""
    return [
        name for name, tensor in tensors.items() if not tensor.isfinite().all()
    ]


def read_log(work_dir: str) -> Iterator[Tuple[str, str]]:
    """Return the lines of the log with their level, without the time."""
    level = ''
    for path in Path(work_dir).glob('*/*.log'):
        for line in path.read_text(errors='replace').splitlines():
            parts = line.split(' - ', 3)
            if len(parts) == 4 and parts[1] == 'mmengine':
                _, _, level, line = parts
            yield level, line


def add_events(result: Run, runner: Runner, work_dir: str) -> None:
    """Read the events and the report of a guarded run."""
    path = Path(runner.log_dir) / 'nanguard' / 'events.jsonl'
    if path.is_file():
        for line in path.read_text().splitlines():
            result.rows.append(json.loads(line))
    if result.is_halted:
        result.story = str(result.error)
    verdict = load_run(work_dir).verdict
    parts = [verdict.sentence]
    for step in verdict.steps:
        parts.extend(step)
    result.advice = '\n'.join(parts)
