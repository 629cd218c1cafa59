"""A small real run: model, data, Runner, and the run to compare it with."""

import itertools
import json
import os
import random
import signal
from pathlib import Path

import numpy as np
import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, HOOKS, LOOPS, MODELS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data import Dataset

from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER

BATCH_SIZE = 4
NUMBERS = itertools.count()  # MMEngine wants each run to have its name


@MODELS.register_module()
class ToyNet(BaseModel):
    """A model of conv and BN, with a loss of two parts."""

    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        )
        self.head = nn.Linear(4, 2)
        self.register_buffer('mask', torch.tensor([0.0, float('-inf')]))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        inputs = torch.stack(list(inputs))
        logits = self.head(self.backbone(inputs).mean((2, 3)))
        if mode != 'loss':
            return logits
        labels = torch.tensor([s.label for s in data_samples])
        labels = labels.to(logits.device)
        return dict(
            loss_cls=nn.functional.cross_entropy(logits, labels),
            loss_size=logits.square().mean(),
        )


def low_precision(loss_scale):
    """Return keys of NanGuardAmpOptimWrapper for low precision.

    They ask for float16 or, where a CPU has none, for bfloat16, which takes no
    scale.
    """
    if HAS_CPU_SCALER:
        return dict(dtype='float16', loss_scale=loss_scale)
    return dict(dtype='bfloat16')


def total_norm(grads, norm_type=2.0):
    """Compute ``torch.nn.utils.get_total_norm``, new in PyTorch 2.6."""
    params = [nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for param, grad in zip(params, grads):
        param.grad = grad.clone()
    return nn.utils.clip_grad_norm_(
        params, float('inf'), norm_type, foreach=False
    )


class LeaveOut:
    """Leave out iterations as if they had never been, which is the oracle.

    The batch is drawn and hooks run, so that data order and schedulers go on,
    but neither the model nor its averaged copy ever sees it.
    """

    never_told = (EMAHook,)

    def __init__(self, *args, leave_out=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.leave_out = leave_out

    def run_iter(self, *batch_idx_and_batch):
        if self._iter + 1 not in self.leave_out:
            return super().run_iter(*batch_idx_and_batch)
        *batch_idx, data_batch = batch_idx_and_batch
        kwargs = dict(
            batch_idx=(batch_idx or [self._iter])[0], data_batch=data_batch
        )
        self.runner.call_hook('before_train_iter', **kwargs)
        if isinstance(self.runner.optim_wrapper, OptimWrapper):
            self.runner.optim_wrapper._inner_count += 1
        for hook in self.runner.hooks:
            if not isinstance(hook, self.never_told):
                hook.after_train_iter(self.runner, **kwargs, outputs={})
        self._iter += 1
        return None


@LOOPS.register_module()
class LeaveOutLoop(LeaveOut, IterBasedTrainLoop):
    pass


class Seeded(LeaveOut):
    """Seed the generators for each model and batch, as a left-out batch draws
    nothing.
    """

    def run_iter(self, *batch_idx_and_batch):
        self._seed(2 * self._iter)
        super().run_iter(*batch_idx_and_batch)
        self._seed(2 * self._iter + 1)

    def _seed(self, seed):
        for set_seed in (random.seed, np.random.seed, torch.manual_seed):
            set_seed(seed)


@LOOPS.register_module()
class LeaveOutEpochLoop(Seeded, EpochBasedTrainLoop):
    pass


@LOOPS.register_module()
class LeaveOutIterLoop(Seeded, IterBasedTrainLoop):
    pass


@HOOKS.register_module()
class KillHook(Hook):
    def __init__(self, iter):
        self.iter = iter

    def after_train_iter(self, runner, batch_idx, **kwargs):
        if runner.iter + 1 == self.iter:
            os.kill(os.getpid(), signal.SIGKILL)


def make_data(size):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 3, 8, 8, generator=generator)
    return [
        dict(
            inputs=image,
            data_samples=BaseDataElement(
                metainfo=dict(img_path=f'train/{index:06d}.jpg'),
                label=index % 2,
            ),
        )
        for index, image in enumerate(images)
    ]


@DATASETS.register_module()
class ToyData(Dataset):
    def __init__(self, size):
        self.items = make_data(size)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def loader(dataset):
    """Return a loader of batches in the order of the data."""
    return dict(
        dataset=dataset,
        sampler=dict(type='DefaultSampler', shuffle=False),
        batch_size=BATCH_SIZE,
        num_workers=0,
    )


def runner_config(work_dir, optim_wrapper, **changes):
    """Return the arguments of a Runner of 10 iterations, with ``changes``."""
    max_iters = changes.pop('max_iters', 10)
    leave_out = changes.pop('leave_out', ())
    config = dict(
        model=dict(type='ToyNet'),
        work_dir=str(work_dir),
        train_dataloader=loader(make_data(max_iters * BATCH_SIZE)),
        train_cfg=dict(
            type='LeaveOutLoop', max_iters=max_iters, leave_out=leave_out
        ),
        optim_wrapper=optim_wrapper,
        log_processor=dict(by_epoch=False),
        experiment_name=f'toy_{next(NUMBERS)}',
        default_scope='mmengine',
        randomness=dict(seed=0),
    )
    config.update(changes)
    defaults = dict(logger=dict(type='LoggerHook', interval=1))
    config['default_hooks'] = {**defaults, **config.get('default_hooks', {})}
    return config


def make_runner(work_dir, optim_wrapper, **changes):
    torch.manual_seed(0)
    return Runner(**runner_config(work_dir, optim_wrapper, **changes))


def wrapper(type_='NanGuardOptimWrapper', lr=0.1, optimizer='SGD', **keys):
    if type_.startswith('NanGuard'):
        type_ = f'mmnanguard.{type_}'
    spec = dict(type=optimizer, lr=lr)
    if optimizer == 'SGD':
        spec['momentum'] = 0.9
    spec.update(keys.pop('optimizer_keys', {}))
    return dict(type=type_, optimizer=spec, **keys)


def guard_hooks(*faults):
    hooks = dict(
        nan_guard=dict(type='mmnanguard.NanGuardHook'),
        event_log=dict(type='mmnanguard.EventLogHook'),
    )
    if faults:
        hooks['fire_drill'] = dict(
            type='mmnanguard.FaultInjectionHook', faults=list(faults)
        )
    return hooks


def everything(runner):
    """Return all tensors that a run leaves behind, by name."""
    tensors = dict(runner.model.state_dict())
    state = runner.optim_wrapper.optimizer.state_dict()['state']
    for index, values in state.items():
        for key, value in values.items():
            tensors[f'state {index} {key}'] = torch.as_tensor(value)
    # MMEngine resumes counters of optimizers on the accelerator.
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def assert_same(left, right):
    """Compare bit for bit, NaN included."""
    left, right = everything(left), everything(right)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        other = right[name]
        assert tensor.dtype == other.dtype
        assert torch.equal(
            tensor.flatten().contiguous().view(torch.uint8),
            other.flatten().contiguous().view(torch.uint8),
        ), name


def assert_finite(runner):
    for name, tensor in everything(runner).items():
        if name != 'mask':
            assert torch.isfinite(tensor).all(), name


def read_rows(runner, kind='update'):
    path = Path(runner.log_dir) / 'nanguard' / 'events.jsonl'
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in rows if row['kind'] == kind]
