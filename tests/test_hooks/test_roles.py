"""Hooks find a user's subclass in the role of its base class."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS, TRANSFORMS
from toys import guard_hooks, make_runner, wrapper

from mmnanguard.core import GuardConfigError
from mmnanguard.datasets import ValidateSample
from mmnanguard.hooks import (
    Fp32ModulesHook,
    InputGuardHook,
    NanGuardHook,
    RollbackHook,
)
from mmnanguard.hooks._shared.roles import EventSource, has_hook
from mmnanguard.hooks.inputs.bad_samples_hook import find_validators
from mmnanguard.hooks.replay.replay_config import hooks_inside


@HOOKS.register_module()
class MyGuardHook(NanGuardHook):
    pass


@HOOKS.register_module()
class MyRollbackHook(RollbackHook):
    pass


@HOOKS.register_module()
class MyFp32Hook(Fp32ModulesHook):
    pass


@HOOKS.register_module()
class MyInputHook(InputGuardHook):
    pass


@TRANSFORMS.register_module()
class MyValidateSample(ValidateSample):
    pass


def build(work_dir, guard_hook='MyGuardHook', rollback=None, **hooks):
    config = dict(when_exhausted='rollback') if rollback else None
    if rollback:
        hooks['rollback'] = dict(type=rollback)
    return make_runner(
        work_dir,
        wrapper(guard=config),
        default_hooks={
            **guard_hooks(),
            'nan_guard': dict(type=guard_hook),
            **hooks,
        },
        max_iters=2,
    )


def log_of(runner):
    (path,) = Path(runner.log_dir).glob('*.log')
    return path.read_text()


def test_a_guard_hook(tmp_path):
    inputs = dict(type='InputGuardHook', action='halt')
    runner = build(tmp_path, inputs=inputs)
    runner.train()
    assert has_hook(runner, EventSource)
    assert 'gets no events' not in log_of(runner)


def test_no_guard_hook(tmp_path):
    runner = build(tmp_path, guard_hook='IterTimerHook')
    runner.train()
    assert 'gets no events' in log_of(runner)


def test_a_rollback_hook(tmp_path):
    build(tmp_path, rollback='MyRollbackHook').train()


def test_no_rollback_hook(tmp_path):
    with pytest.raises(GuardConfigError, match='RollbackHook'):
        build(tmp_path, rollback='IterTimerHook').train()


@pytest.mark.parametrize('kind', [MyFp32Hook, MyInputHook])
@pytest.mark.parametrize('is_lazy', [False, True])
def test_hooks_that_change_a_pass(kind, is_lazy):
    type_ = kind if is_lazy else kind.__name__
    cfg = Config(dict(custom_hooks=[dict(type=type_), dict(type='EMAHook')]))
    assert [hook for hook, _ in hooks_inside(cfg)] == [kind]


def test_a_dump_has_the_modules_of_a_float32_hook(tmp_path):
    runner = build(
        tmp_path,
        fp32=dict(type='MyFp32Hook', modules=['head']),
        drill=dict(
            type='FaultInjectionHook', faults=[dict(iter=2, site='grad')]
        ),
        dump=dict(type='BatchDumpHook'),
    )
    runner.train()
    (path,) = Path(runner.log_dir).glob('nanguard/dumps/*.pt')
    assert torch.load(path, weights_only=True)['fp32_modules'] == ['head']


def test_a_validating_transform(tmp_path):
    runner = build(tmp_path)
    runner.train()
    validate = MyValidateSample(['Finite'])
    runner.train_dataloader.dataset.append(validate)
    assert find_validators(runner) == [validate]
