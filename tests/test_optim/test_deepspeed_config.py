"""``apply_guard`` on configs with MMEngine's DeepSpeedStrategy."""

import copy
import json

import pytest
import torch
from mmengine._strategy.deepspeed import DeepSpeedOptimWrapper
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper
from torch.optim import AdamW

from mmnanguard import apply_guard
from mmnanguard.core import GuardConfigError

ADAMW = dict(type=AdamW, lr=2e-4)
WRAPPER = 'mmnanguard.NanGuardDeepSpeedOptimWrapper'


def guarded(guard, strategy, **wrapper):
    wrapper.setdefault('type', 'DeepSpeedOptimWrapper')
    cfg = Config(
        dict(
            optim_wrapper=dict(optimizer=ADAMW, **wrapper),
            strategy=dict(type='DeepSpeedStrategy', **strategy),
            train_dataloader=dict(batch_size=3),
        )
    )
    before = copy.deepcopy(cfg)
    result = apply_guard(cfg, guard)
    assert cfg.to_dict() == before.to_dict()
    return result


@pytest.mark.parametrize('type_', ['DeepSpeedOptimWrapper', AmpOptimWrapper])
@pytest.mark.parametrize('guard', ['fp32', 'bf16', 'fp16', 'full'])
def test_each_guard_takes_the_wrapper_of_deepspeed(guard, type_):
    cfg = guarded(guard, dict(fp16=dict(enabled=True)), type=type_)
    assert cfg.optim_wrapper.type == WRAPPER
    assert cfg.optim_wrapper.optimizer == ADAMW
    assert cfg.runner_type == 'FlexibleRunner'
    assert 'dtype' not in cfg.optim_wrapper
    hooks = {hook.type for hook in cfg.default_hooks.values()}
    assert 'mmnanguard.NanGuardHook' in hooks
    assert 'mmnanguard.RollbackHook' not in hooks
    guard_keys = cfg.optim_wrapper.get('guard', {})
    assert guard_keys == (dict(divergence={}) if guard == 'full' else {})


@pytest.mark.parametrize(
    ('guard', 'fp16', 'bf16'),
    [('fp32', 0, 0), ('bf16', 0, 1), ('fp16', 1, 0), ('full', 1, 0)],
)
def test_the_precision_is_of_the_strategy(guard, fp16, bf16):
    fp16_before = dict(enabled=True, initial_scale_power=12)
    strategy = guarded(guard, dict(config=dict(fp16=fp16_before))).strategy
    settings = {**strategy.config, **strategy}
    assert settings['fp16']['enabled'] == bool(fp16)
    assert settings['fp16']['initial_scale_power'] == 12
    assert settings.get('bf16', {}).get('enabled', False) == bool(bf16)


@pytest.mark.parametrize('auto', [{}, 'auto'])
def test_the_strategy_gets_what_the_wrapper_said(auto, tmp_path):
    settings = {}
    if auto:
        keys = 'gradient_accumulation_steps gradient_clipping'
        settings = dict.fromkeys(keys.split(), auto)
    path = tmp_path / 'deepspeed_zero2.json'
    path.write_text(json.dumps(settings))
    cfg = guarded(
        'bf16',
        dict(config=str(path)),
        type=AmpOptimWrapper,
        accumulative_counts=16,
        clip_grad=dict(max_norm=1, error_if_nonfinite=False),
        loss_scale='dynamic',
        dtype='float16',
    )
    assert cfg.strategy.gradient_accumulation_steps == 16
    assert cfg.strategy.gradient_clipping == 1
    assert cfg.strategy.train_micro_batch_size_per_gpu == 3
    assert set(cfg.optim_wrapper) == {'type', 'optimizer'}


@pytest.mark.parametrize(
    ('dtype', 'precision'),
    [
        ('float16', 'fp16'),
        ('bfloat16', 'bf16'),
        (torch.bfloat16, 'bf16'),
        (None, 'fp16'),
    ],
)
def test_an_auto_precision_is_that_of_the_wrapper(dtype, precision):
    auto = dict(enabled='auto')
    wrapper = dict(type=AmpOptimWrapper)
    if dtype:
        wrapper['dtype'] = dtype
    settings = dict(config=dict(fp16=auto, bf16=auto))
    strategy = guarded('full', settings, **wrapper).strategy
    for key in ('fp16', 'bf16'):
        assert strategy[key].enabled is (key == precision)


@pytest.mark.parametrize('type_', ['OptimWrapper', 'DeepSpeedOptimWrapper'])
def test_an_auto_precision_of_which_nothing_is_known_is_refused(type_):
    settings = dict(config=dict(bf16=dict(enabled='auto')))
    with pytest.raises(GuardConfigError, match='--guard fp32, bf16 or fp16'):
        guarded('full', settings, type=type_)
    assert guarded('bf16', settings, type=type_).strategy.bf16.enabled is True


def test_what_the_strategy_gets_is_said(caplog, capsys):
    guarded(
        'bf16',
        dict(config=dict(gradient_clipping='auto')),
        type=AmpOptimWrapper,
        accumulative_counts=16,
        clip_grad=dict(max_norm=1),
        dtype='float16',
    )
    text = capsys.readouterr().out + caplog.text
    assert 'dropped' not in text
    for part in (
        "bf16={'enabled': True}",
        'gradient_accumulation_steps=16',
        'gradient_clipping=1,',
        'train_micro_batch_size_per_gpu=3',
    ):
        assert part in text


def test_what_the_strategy_says_stays():
    said = dict(gradient_accumulation_steps=4, gradient_clipping=0.3)
    cfg = guarded('full', said, type=DeepSpeedOptimWrapper)
    assert {key: cfg.strategy[key] for key in said} == said


def test_a_clip_of_the_guards_own_stays_in_the_wrapper():
    clip = dict(type='AutoClip', percentile=10)
    cfg = guarded('full', {}, clip_grad=clip)
    assert cfg.optim_wrapper.clip_grad == clip


def test_autopsies_are_left_out_with_zero_3():
    for stage in (2, 3):
        cfg = guarded('full', dict(zero_optimization=dict(stage=stage)))
        assert ('autopsy' in cfg.default_hooks) is (stage == 2)


def test_a_wrapper_without_its_strategy_is_refused():
    wrapper = dict(type='DeepSpeedOptimWrapper', optimizer=ADAMW)
    with pytest.raises(GuardConfigError, match='no strategy'):
        apply_guard(Config(dict(optim_wrapper=wrapper)), 'full')
