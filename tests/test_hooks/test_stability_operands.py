"""Operands that fall towards a pole are told before the NaN."""

import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn
from torch.nn import functional as F
from toys import assert_same, guard_hooks, make_runner, wrapper

from mmnanguard import numerics
from mmnanguard.core.rows.alert_row import AlertRow
from mmnanguard.core.stability.limits import StabilityLimits
from mmnanguard.core.stability.monitor import Monitor
from mmnanguard.core.stability.sample import Operand, Sample
from mmnanguard.numerics.stability.failsafe import Failsafe
from mmnanguard.numerics.stability.logit_probe import LogitProbe

FALLING = {
    'sqrt': lambda x: x.abs().sqrt(),
    'log': lambda x: x.abs().log(),
    'div': lambda x: 1e-30 / x,
}
OTHER_CALLS = {
    'rsqrt': lambda x: torch.rsqrt(x),
    'log2': lambda x: x.log2_(),
    'pow': lambda x: x**0.5,
    'div': lambda x: torch.div(torch.ones(2), x),
}
HARMLESS = {
    'an epsilon': lambda x: (x.square() + 1e-12).sqrt(),
    'the root of one': lambda x: 1e-30 / (x.square() + 1e-24).sum().sqrt(),
    'a clamp': lambda x: x.clamp(min=1e-10).log(),
    'a floor': lambda x: 1e-30 / torch.max(x, torch.full((2,), 1e-20)),
    'a function with an epsilon': lambda x: F.normalize(x, dim=0),
    'a norm': lambda x: F.layer_norm(x, (2,)),
    'a loss': lambda x: F.binary_cross_entropy(x.clamp(0, 1), torch.ones(2)),
    'a power without a pole': lambda x: x**2,
    'no gradient': lambda x: x.detach().abs().log(),
    'attention': lambda x: F.softmax(x / 2, 0),
    'dropout': lambda x: F.dropout(x, 0.5) / 0.5,
}


# Its derivative is NaN already.
ZEROS = {'zeros of a mask': lambda x: (x * torch.zeros(2)).sqrt()}


@MODELS.register_module()
class FallingOperand(BaseModel):
    """A model whose weight gets a hundred times smaller in each iteration."""

    def __init__(self, kind):
        super().__init__()
        calls = list(HARMLESS.values())
        if kind in FALLING:
            calls = [FALLING[kind]]
        self.head = Head(calls)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        mean = torch.stack(list(inputs)).mean()
        return dict(loss=self.head(mean))


class Head(nn.Module):
    def __init__(self, calls):
        super().__init__()
        self.calls = calls
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, mean):
        loss = 9 * self.weight.square().sum() + 0 * mean
        for call in self.calls:
            loss = loss + 0 * call(self.weight).sum()
        return loss


def train(work_dir, kind, **monitor):
    hooks = guard_hooks()
    if monitor:
        hooks['stability'] = dict(
            type='mmnanguard.StabilityMonitorHook', **monitor
        )
    runner = make_runner(
        work_dir,
        wrapper(lr=0.055, optimizer_keys=dict(momentum=0.0)),
        model=dict(type='FallingOperand', kind=kind),
        default_hooks=hooks,
        max_iters=15,
    )
    runner.train()
    return runner


def alerts_of(runner):
    path = Path(runner.log_dir) / 'nanguard' / 'events.jsonl'
    rows = map(json.loads, path.read_text().splitlines())
    return [row for row in rows if row.get('rule') == 'operands']


@pytest.mark.parametrize('kind', FALLING)
def test_a_falling_operand_is_told_once_with_its_line(tmp_path, kind):
    runner = train(tmp_path, kind, interval=5)
    (alert,) = alerts_of(runner)
    assert 0 < alert['value'] < alert['limit'] == 1e-9
    assert alert['module'] == 'head'
    assert alert['op'] == kind
    name, line = alert['source'].split(':')
    lines = Path(__file__).read_text().splitlines()
    assert name == Path(__file__).name
    assert lines[int(line) - 1].strip().startswith(f"'{kind}'")


def test_the_rule_can_be_switched_off(tmp_path):
    runner = train(tmp_path, 'log', interval=5, operands=None)
    assert alerts_of(runner) == []


def test_bounded_and_constant_operands_are_no_alarm(tmp_path):
    runner = train(tmp_path / 'monitored', 'harmless', interval=5)
    assert runner.model.head.weight.abs().max() < 1e-9
    assert alerts_of(runner) == []
    # No random number is drawn, although every call is looked at.
    assert_same(runner, train(tmp_path / 'plain', 'harmless'))


@pytest.mark.parametrize('op', OTHER_CALLS)
def test_other_calls_of_the_same_operations(op):
    weight = torch.tensor([3e-10, 2.0], requires_grad=True)
    with LogitProbe({}, Failsafe()) as probe:
        OTHER_CALLS[op](weight * 1)
    (operand,) = probe.operands.values
    assert operand.op == op
    assert operand.value == weight.min()


@pytest.mark.parametrize('kind', [*HARMLESS, *ZEROS])
def test_harmless_calls_have_no_operand(kind):
    weight = torch.tensor([3e-10, 0.5], requires_grad=True)
    with LogitProbe({}, Failsafe()) as probe:
        {**HARMLESS, **ZEROS}[kind](weight * 1)
    assert [v for v in probe.operands.values if v.value < 1e-9] == []


def test_an_operand_below_the_numbers_of_float32_is_ignored():
    weight = torch.tensor([1e-60, 0.5], dtype=torch.float64)
    with LogitProbe({}, Failsafe()) as probe:
        weight.requires_grad_().log()
    (operand,) = probe.operands.values
    assert operand.value == 0.5


def test_what_an_optimizer_does_is_no_operand():
    param = nn.Parameter(torch.tensor([1e-20, 1.0]))
    optimizer = torch.optim.Adam([param], foreach=False)
    with LogitProbe({}, Failsafe()) as probe:
        param.square().sum().backward()
        optimizer.step()
    assert probe.operands.values == []


def alerts_at(values):
    """Return the samples, from 1, at which these operands are told."""
    monitor, iterations = Monitor(), []
    for i, value in enumerate(values, 1):
        sample = Sample(i, operands={'head': Operand(value, 'log', 'a.py:1')})
        judgement = monitor.after(sample, StabilityLimits(), 50)
        monitor = judgement.monitor
        iterations += [a.iter for a in judgement.alerts if a.cleared is None]
    return iterations


FALL = [1e-3, 1e-6, 1e-9, 1e-12, 1e-15, 1e-18, 1e-21, 1e-24]


@pytest.mark.parametrize(
    ('values', 'iterations'),
    [
        # The fifth is about as far from 0 as it has fallen so far. It is told
        # once, however far it falls.
        (FALL, [5]),
        # Above the limit, and what falls too slowly to reach 0.
        ([1e20, 1e10, 1.0, 1e-8], []),
        ([1e-10, 9e-11, 8e-11, 7e-11, 6e-11], []),
        # Something holds it.
        ([*FALL[:4], *[1e-12] * 8], []),
        ([1e-6, 1e-30] * 5, []),
    ],
)
def test_only_what_falls_to_0_is_told(values, iterations):
    assert alerts_at(values) == iterations


def test_an_alert_says_how_long_it_takes():
    words = AlertRow(
        rule='operands', module='head', value=1e-12, doubles=2.5, left=90.2
    ).replace(op='div', source='a.py:3', iter=7)
    assert words.sentence() == (
        "the smallest denominator at a.py:3 in 'head' halves every 2.5 "
        'iterations, reaches 0 in about 90, and is at 1e-12; at 0 its '
        'derivative is infinite; mmnanguard.numerics.safe_divide bounds it, '
        'or add a small number'
    )
    assert words.line() == (
        "Iter 7: alert: the smallest denominator at a.py:3 in 'head' reaches "
        '0 in about 90 iterations; mmnanguard.numerics.safe_divide bounds it, '
        'or add a small number'
    )


@pytest.mark.parametrize('op', ['sqrt', 'rsqrt', 'log', 'div', 'pow'])
def test_the_safe_operation_of_an_alert_exists(op):
    sentence = AlertRow(rule='operands', op=op).sentence()
    (name,) = re.findall(r'mmnanguard\.numerics\.(\w+)', sentence)
    assert callable(getattr(numerics, name))


def test_the_trend_survives_a_resume():
    before = Sample(1, operands={'': Operand(1e-6)})
    monitor = Monitor().after(before, StabilityLimits(), 50).monitor
    again = Monitor.from_dict(json.loads(json.dumps(monitor.to_dict())))
    assert list(again.operands) == ['']
