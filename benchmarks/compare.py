"""Compare what people use against NaN, on a training set with two bad samples.

Each way trains the digits of configs/digits, in which two images of 1,437 have
a NaN pixel, and ends with its accuracy, what is not finite, and what it has
named. Then the ways take turns with a ResNet-18 without faults: the ratio is
the time of an iteration beside MMEngine's own.

Example:
    python benchmarks/compare.py --json compare.json
"""

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
from benchmark import describe_machine, save, show
from benchmark_hooks import MODELS, Images, ResNet, make_runner, measure
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, TRANSFORMS
from mmengine.runner import Runner

ROOT = Path(__file__).parents[1]
# For the modules that the config imports, and for the baseline of the tests.
sys.path += [str(ROOT), str(ROOT / 'tests')]
import baseline  # noqa: E402, F401  registers CpuAmpOptimWrapper

BAD = ('digits/train/000017', 'digits/train/000931')


@TRANSFORMS.register_module(force=True)
class SpoilDigits:
    """Makes a pixel of the bad samples NaN."""

    def __call__(self, results: dict) -> dict:
        if results['img_path'] in BAD:
            image = results['img'].copy()
            image[0, 0] = np.nan
            results['img'] = image
        return results


@OPTIM_WRAPPERS.register_module(force=True)
class SkipBadLoss(OptimWrapper):
    """Skips an update whose loss is not finite, as people write by hand."""

    def update_params(self, loss, step_kwargs=None, zero_kwargs=None):
        if torch.isfinite(loss):
            super().update_params(loss, step_kwargs, zero_kwargs)


@OPTIM_WRAPPERS.register_module(force=True)
class SkipBadGrads(OptimWrapper):
    """Skips an update with a gradient that is not finite."""

    def step(self, **kwargs):
        for group in self.optimizer.param_groups:
            for param in group['params']:
                if param.grad is None or torch.isfinite(param.grad).all():
                    continue
                return
        super().step(**kwargs)


class CheckLoss(Hook):
    """Ends the run at a loss that is not finite, as mmdet's hook does."""

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        if self.every_n_train_iters(runner, 50):
            assert torch.isfinite(outputs['loss']), 'loss is not finite'


@OPTIM_WRAPPERS.register_module(force=True)
class DetectAnomaly(OptimWrapper):
    """Calls backward with PyTorch's anomaly detection."""

    def backward(self, loss, **kwargs):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # it warns of its cost
            with torch.autograd.detect_anomaly():
                super().backward(loss, **kwargs)


class Way(NamedTuple):
    """The keys of the wrapper, and the hooks."""

    wrapper: dict
    hooks: Sequence = ()


GUARD = dict(type='mmnanguard.NanGuardOptimWrapper')
HOOKS = [
    dict(type='mmnanguard.NanGuardHook'),
    dict(type='mmnanguard.EventLogHook'),
]
INPUTS = dict(type='mmnanguard.InputGuardHook', action='explain')
PLAIN = "MMEngine's wrapper"
# In float16, whose time says nothing on a CPU.
GRAD_SCALER = 'GradScaler'
WAYS = {
    PLAIN: Way(dict(type='OptimWrapper')),
    GRAD_SCALER: Way(dict(type='CpuAmpOptimWrapper')),
    'clip_grad': Way(dict(type='OptimWrapper', clip_grad=dict(max_norm=35))),
    'CheckInvalidLossHook': Way(dict(type='OptimWrapper'), [CheckLoss]),
    'detect_anomaly': Way(dict(type='DetectAnomaly')),
    'if isnan(loss): skip': Way(dict(type='SkipBadLoss')),
    'if isnan(grad): skip': Way(dict(type='SkipBadGrads')),
    'mmnanguard': Way(GUARD, HOOKS),
    'mmnanguard, InputGuardHook': Way(GUARD, [*HOOKS, INPUTS]),
}


def hooks_of(way: Way) -> List:
    """Return new hooks."""
    hooks = []
    for hook in way.hooks:
        hooks.append(dict(hook) if isinstance(hook, dict) else hook())
    return hooks


def train(name: str, folder: str, num_epochs: Optional[int]) -> Dict[str, str]:
    """Train the digits in a way; return the row of its outcome."""
    config = Config.fromfile(ROOT / 'configs' / 'digits' / 'base.py')
    config.merge_from_dict(
        {
            'work_dir': f'{folder}/{name}',
            'train_dataloader.dataset.pipeline': [
                dict(type='SpoilDigits'),
                dict(type='PackDigits'),
            ],
            'default_hooks': dict(checkpoint=None),
            'log_level': 'ERROR',
            'experiment_name': name,
        }
    )
    config.optim_wrapper.update(WAYS[name].wrapper)
    if num_epochs is not None:
        config.train_cfg.max_epochs = num_epochs
    runner = Runner.from_cfg(config)
    for hook in hooks_of(WAYS[name]):
        runner.register_hook(hook)
    ended, names = 'the end', ''
    try:
        runner.train()
    except (AssertionError, RuntimeError) as error:
        ended = f'iteration {runner.iter + 1}'
        names = str(error).split('returned')[0].strip()
    return {
        'way': name,
        'runs to': ended,
        'accuracy': f'{accuracy(runner):.1f}',
        'not finite': ', '.join(not_finite(runner.model)) or 'nothing',
        'names': named(runner) or names or 'nothing',
    }


def accuracy(runner: Runner) -> float:
    """Return the accuracy of the weights as they are now."""
    runner.val_loop.run()
    return float(runner.message_hub.get_scalar('val/accuracy').current())


def not_finite(model: torch.nn.Module) -> List[str]:
    """Return what is not finite: weights, statistics of BatchNorm, or both."""
    parts = {
        'weights': model.parameters(),
        'BatchNorm statistics': model.buffers(),
    }
    bad = []
    for part, tensors in parts.items():
        if not all(torch.isfinite(tensor).all() for tensor in tensors):
            bad.append(part)
    return bad


def named(runner: Runner) -> str:
    """Return which samples the rows of the guard name, if there are any."""
    samples, batches = set(), set()
    for path in Path(runner.log_dir).glob('nanguard/events.jsonl'):
        for row in map(json.loads, path.read_text().splitlines()):
            if row['kind'] == 'input':
                samples.update(row['samples'])
            elif row['kind'] == 'update':
                batches.update(row['samples'])
    if samples:
        right = len(samples.intersection(BAD))
        return f'{right} bad samples, {len(samples) - right} others'
    right = len(batches.intersection(BAD))
    return f'the batches of {right} bad samples' if right else ''


def make_resnet(name: str, dataset: Images, folder: str) -> Runner:
    """Return a runner with a ResNet-18 that is ready to iterate."""
    way = WAYS[name]
    model = dict(type=ResNet, widths=MODELS['resnet18'])
    where = f'{folder}/timed {name}'
    return make_runner(model, way.wrapper, hooks_of(way), dataset, 8, where)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the comparison, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--epochs', type=int, help='of the digits; 8 if left out')
    add('--repeat', type=int, default=30, help='rounds of iterations')
    add('--threads', type=int, default=1)
    add('--markdown', action='store_true')
    add('--json', type=Path, metavar='FILE')
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        rows = [train(name, folder, args.epochs) for name in WAYS]
        torch.manual_seed(0)
        dataset = Images(32, 32)
        timed = [name for name in WAYS if name != GRAD_SCALER]
        runners = [make_resnet(name, dataset, folder) for name in timed]
        times = measure(runners, args.repeat)
    ratios = np.median(times / times[:, :1], axis=0).round(2)
    of_name = dict(zip(timed, ratios.tolist()))
    for row in rows:
        row['time'] = of_name.get(row['way'], '-')
    machine = describe_machine('cpu', cpu_note='no GPU')
    show(machine, rows, args.markdown)
    save(machine, rows, args.json)
    return 0


if __name__ == '__main__':
    sys.exit(main())
