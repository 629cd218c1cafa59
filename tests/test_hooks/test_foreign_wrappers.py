"""All hooks speak up beside the wrappers of Apex, ColossalAI and DeepSpeed.

The wrappers and ColossalAI's strategy are MMEngine's own, and the packages
behind them are stand-ins.
"""

import math
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine._strategy import colossalai
from mmengine._strategy.deepspeed import DeepSpeedOptimWrapper
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim.optimizer import apex_optimizer_wrapper
from mmengine.registry import MODELS, OPTIM_WRAPPERS
from mmengine.runner import FlexibleRunner, Runner
from run_log import unwrapped_log
from torch import nn
from toys import ToyNet, guard_hooks, read_rows, runner_config

from mmnanguard.core import GuardConfigError, TrainingHalted
from mmnanguard.report import load_run

ROOT = Path(__file__).parents[2]


@MODELS.register_module()
class NanInForward(ToyNet):
    """A model whose fourth loss is NaN."""

    num_calls = 0

    def forward(self, inputs, data_samples=None, mode='tensor'):
        losses = super().forward(inputs, data_samples, mode)
        self.num_calls += 1
        if self.num_calls == 4:
            losses['loss_cls'] = losses['loss_cls'] * math.nan
        return losses


class Amp:
    """Stands in for ``apex.amp``: a scaled loss, unscaled gradients."""

    def initialize(self, model, optimizer, **keys):
        optimizer._amp_stash = None
        return model, optimizer

    @contextmanager
    def scale_loss(self, loss, optimizer):
        yield loss * 4
        for group in optimizer.param_groups:
            for param in group['params']:
                if param.grad is not None:
                    param.grad.div_(4)

    def state_dict(self):
        return dict(loss_scale=4)

    def load_state_dict(self, state):
        assert state == dict(loss_scale=4)


class ModelWrapper(nn.Module):
    """Stands in for ColossalAI's wrapper of a model."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


class OptimizerWrapper:
    """Stands in for ColossalAI's, which is no optimizer of PyTorch."""

    def __init__(self, optim):
        self.optim = optim
        self.param_groups = optim.param_groups
        self.defaults = optim.defaults
        self.step = optim.step
        self.zero_grad = optim.zero_grad

    def backward(self, loss, **kwargs):
        loss.backward(**kwargs)


class Booster:
    """Stands in for ColossalAI's, which saves model and optimizer."""

    def __init__(self, **keys):
        self.plugin = SimpleNamespace(support_no_sync=lambda: True)

    def boost(self, model, optimizer):
        return ModelWrapper(model), OptimizerWrapper(optimizer)

    def no_sync(self, model, optimizer):
        return nullcontext()

    def save_model(self, model, checkpoint, shard):
        torch.save(model.module.state_dict(), Path(checkpoint) / 'model.pth')

    def load_model(self, model, folder):
        model.module.load_state_dict(torch.load(Path(folder) / 'model.pth'))

    def save_lr_scheduler(self, scheduler, path):
        torch.save(scheduler.state_dict(), path)

    def load_lr_scheduler(self, scheduler, path):
        scheduler.load_state_dict(torch.load(path))

    def save_optimizer(self, optimizer, checkpoint, shard):
        state = optimizer.optim.state_dict()
        torch.save(state, Path(checkpoint) / 'optimizer.pth')

    def load_optimizer(self, optimizer, folder):
        state = torch.load(Path(folder) / 'optimizer.pth')
        optimizer.optim.load_state_dict(state)


class Engine(Hook):
    """Stands in for DeepSpeed's engine."""

    def before_train(self, runner):
        runner.optim_wrapper.model = self
        self.optimizer = runner.optim_wrapper.optimizer

    def backward(self, loss):
        loss.backward()

    def step(self):
        self.optimizer.step()
        self.optimizer.zero_grad()


@OPTIM_WRAPPERS.register_module()
class LikeDeepSpeedOptimWrapper(DeepSpeedOptimWrapper):
    """A wrapper with all that a Runner asks for."""

    def optim_context(self, model):
        return nullcontext()

    def initialize_count_status(self, *args):
        pass


WRAPPERS = {
    'apex': 'ApexOptimWrapper',
    'colossalai': 'ColossalAIOptimWrapper',
    'deepspeed': 'LikeDeepSpeedOptimWrapper',
}
ADVICE = {
    'apex': "does with PyTorch what Apex does with opt_level='O1'",
    'colossalai': 'cannot be guarded; FSDPStrategy and DeepSpeedStrategy',
    'deepspeed': 'type to mmnanguard.NanGuardDeepSpeedOptimWrapper.',
}


@pytest.fixture(params=WRAPPERS)
def engine(request, monkeypatch):
    monkeypatch.setattr(apex_optimizer_wrapper, 'apex_amp', Amp())
    for name in ('plugins', 'mixed_precisions', 'optimizers'):
        monkeypatch.setattr(colossalai, f'register_{name}', lambda: None)
    for name, value in dict(
        colossalai=colossalai, Booster=Booster, ModelWrapper=ModelWrapper
    ).items():
        monkeypatch.setattr(colossalai, name, value)
    return request.param


def build(engine, work_dir, hooks, counts=1, **changes):
    keys = dict(optimizer=dict(type='AdamW', lr=0.01))
    # MMEngine's Runner cannot save the state of DeepSpeed's wrapper.
    checkpoint = None
    if engine != 'deepspeed':
        keys['accumulative_counts'] = counts
        checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=1)
    config = runner_config(
        work_dir,
        dict(type=WRAPPERS[engine], **keys),
        default_hooks=dict(guard_hooks(), checkpoint=checkpoint, **hooks),
        custom_hooks=[Engine()] if engine == 'deepspeed' else [],
        **changes,
    )
    if engine == 'colossalai':
        strategy = dict(type='ColossalAIStrategy', plugin=None)
        # The strategy saves no run without one.
        config['param_scheduler'] = [dict(type='LinearLR', by_epoch=False)]
        return FlexibleRunner(**config, strategy=strategy)
    return Runner(**config)


def train(engine, work_dir, hooks, counts=1, **changes):
    """Train, and return the runner and its log."""
    runner = build(engine, work_dir, hooks, counts, **changes)
    try:
        runner.train()
    except TrainingHalted as halt:
        runner.halt = str(halt)
    return runner, unwrapped_log(runner)


def full(*left_out):
    """Return the hooks of the guard 'full'."""
    hooks = Config.fromfile(str(ROOT / 'configs/guards/full.py')).default_hooks
    for name in ('nan_guard', 'event_log', 'input_guard', *left_out):
        del hooks[name]
    return hooks


@pytest.mark.filterwarnings('ignore:Detected call of `scheduler.step')
@pytest.mark.parametrize('counts', [1, 2])
@pytest.mark.parametrize('is_full', [False, True])
def test_hooks_run_and_say_that_nothing_is_guarded(
    tmp_path, engine, is_full, counts
):
    hooks = {}
    if is_full:
        hooks = full(*['rollback'] if engine == 'colossalai' else [])
    keys = dict(counts=counts, max_iters=5)
    _, log = train(engine, tmp_path, hooks, **keys)
    said = f'run by {WRAPPERS[engine]}: ITS UPDATES ARE NOT GUARDED'
    assert said in log
    if engine == 'deepspeed':
        assert 'to mmnanguard.NanGuardDeepSpeedOptimWrapper.' in log
        return
    keys = dict(counts=counts, max_iters=7, resume=True)
    runner, log = train(engine, tmp_path, hooks, **keys)
    assert runner.iter == 7
    assert said in log
    report = load_run(str(tmp_path))
    assert report.verdict.sentence.startswith('not guarded: ')
    # No command that would be refused.
    (step,) = report.verdict.steps
    assert (step.code, 'annot be guarded' in step.detail) == ('', True)


def test_a_nan_is_told_and_not_saved(tmp_path, engine):
    hooks = full(*['rollback'] if engine == 'colossalai' else [])
    hooks.audit.interval = 1
    runner, log = train(
        engine, tmp_path, hooks, model=dict(type='NanInForward')
    )
    assert "the model logs 'loss' as nan" in log
    assert 'is NOT GUARDED' in log
    (audit,) = read_rows(runner, 'audit')
    assert runner.iter == 3
    assert ADVICE[engine] in runner.halt
    assert set(audit['where']) >= {'weights', 'optimizer'}
    assert not (tmp_path / 'iter_4.pth').exists()


@pytest.mark.parametrize('engine', ['colossalai'], indirect=True)
def test_no_rollback_of_an_engine(tmp_path, engine):
    hooks = dict(rollback=dict(type='mmnanguard.RollbackHook'))
    with pytest.raises(GuardConfigError, match='ColossalAI'):
        build(engine, tmp_path, hooks).train()


def test_inputs_need_a_guard_to_reject(tmp_path, engine):
    hooks = dict(inputs=dict(type='mmnanguard.InputGuardHook'))
    with pytest.raises(GuardConfigError, match='can reject an update'):
        build(engine, tmp_path, hooks).train()
