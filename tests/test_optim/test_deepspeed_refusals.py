"""Engines and settings that the DeepSpeed wrapper refuses."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmnanguard.core import GuardConfigError
from mmnanguard.optim import NanGuardDeepSpeedOptimWrapper


class OnebitAdam:
    """The name of an optimizer of DeepSpeed."""


class TunedAdam(OnebitAdam):
    """A form of it that a project has."""


def make_engine(**changes):
    """Return the part of an engine that is looked at before it trains."""
    net = nn.Linear(2, 2)
    optimizer = changes.pop('optimizer', None)
    zero = SimpleNamespace(
        **dict(dict(stage=0), **changes.pop('zero_config', {}))
    )
    engine = nn.Module()
    engine.module = net
    values = dict(
        optimizer=optimizer or torch.optim.SGD(net.parameters(), lr=0.1),
        _config=SimpleNamespace(zero_config=zero),
        gradient_accumulation_steps=lambda: 1,
    )
    vars(engine).update({**values, **changes})
    return engine


def bind(engine, **keys):
    params = [nn.Parameter(torch.zeros(2))]
    wrapper = NanGuardDeepSpeedOptimWrapper(
        torch.optim.SGD(params, lr=0.1), **keys
    )
    wrapper.model = engine
    return wrapper


def test_a_plain_engine_is_taken():
    assert bind(make_engine())._accumulative_counts == 1


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        (dict(pipeline_parallelism=True), 'pipeline parallelism'),
        (dict(has_moe_layers=True), 'MoE'),
        (
            dict(
                zero_config=dict(
                    offload_optimizer=SimpleNamespace(device='nvme')
                )
            ),
            'NVMe',
        ),
        (
            dict(
                zero_config=dict(offload_param=SimpleNamespace(device='cpu'))
            ),
            'offload of parameters',
        ),
        (dict(mpu=object()), 'tensor parallelism'),
        (dict(torch_autocast_z0_gradscaler=object()), 'autocast'),
        (dict(amp_enabled=lambda: True), 'Apex'),
        (dict(is_deepcompile_enabled=lambda: True), 'DeepCompile'),
        (dict(zero_config=dict(zero_hpz_partition_size=2)), 'secondary'),
        (dict(zero_config=dict(zeropp_loco_param={'a': 1})), 'LoCo'),
        (dict(sparse_gradients_enabled=lambda: True), 'sparse_gradients'),
        (dict(basic_optimizer=OnebitAdam()), 'the optimizer OnebitAdam'),
        (dict(basic_optimizer=TunedAdam()), 'the optimizer TunedAdam'),
    ],
)
def test_an_engine_is_refused_with_its_reason(changes, reason):
    with pytest.raises(GuardConfigError, match=reason):
        bind(make_engine(**changes))


def test_an_unknown_optimizer_is_refused():
    unknown = type('MiCS_Optimizer', (), {})()
    with pytest.raises(GuardConfigError, match='optimizer MiCS_Optimizer'):
        bind(make_engine(optimizer=unknown))


@pytest.mark.parametrize(
    ('keys', 'reason'),
    [
        (dict(guard=dict(accumulation='microbatch')), 'microbatch'),
        (dict(clip_grad=dict(type='value', clip_value=1)), 'flat parts'),
        (dict(accumulative_counts=2), 'gradient_accumulation_steps'),
        (dict(loss_scale='dynamic'), 'loss_scale'),
    ],
)
def test_a_setting_is_refused_with_its_reason(keys, reason):
    with pytest.raises(GuardConfigError, match=reason):
        bind(make_engine(), **keys)


def test_half_weights_without_masters_are_refused():
    net = nn.Linear(2, 2).half()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(GuardConfigError, match='float16'):
        bind(make_engine(optimizer=optimizer))
