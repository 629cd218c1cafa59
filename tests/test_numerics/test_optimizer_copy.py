"""A copy brings back the whole optimizer, whatever it keeps and where."""

from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from mmnanguard.numerics import StateCopy
from mmnanguard.numerics.checkpoints.optimizer_copy import OptimizerCopy

Pair = namedtuple('Pair', 'low high')


class Helper:
    """An object of the optimizer's own, like a preconditioner."""

    def __init__(self, param=None):
        self.param, self.sums = param, [torch.zeros(1)]
        if param is not None:
            self.sums = [torch.zeros_like(param)]


class KeepsEverywhere(Optimizer):
    """An optimizer with progress in all the places that optimizers use."""

    def __init__(self, params):
        super().__init__(params, dict(lr=0.1, k=0, distance=1e-6))
        self.base = AdamW(self.param_groups, lr=0.1)
        self.count = 0
        self.pair = Pair(torch.zeros(2), 0)
        self.history = []
        self.alias = self.base.state
        self.function = print
        self.meter = Helper()

    @torch.no_grad()
    def step(self, closure=None):
        self.base.step()
        self.count += 1
        self.meter.sums[0].add_(1)
        self.pair = Pair(self.pair.low + 1, self.count)
        self.history.append(float(self.count))
        for group in self.param_groups:
            group['k'] += 1
            group['distance'] *= 2
            for param in group['params']:
                state = self.state[param]
                if not state:
                    state['helper'] = Helper(param)
                    state['grown'] = torch.zeros(1)
                state['helper'].sums[0].add_(param.grad)
                state['grown'] = torch.cat([state['grown'], torch.ones(1)])


def train(model, optimizer, num_steps):
    for seed in range(num_steps):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()


def digest(value, params):
    """Return all numbers in a value, without the parameters themselves."""
    if isinstance(value, nn.Parameter):
        return params.index(id(value))
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return [
            (digest(key, params), digest(item, params))
            for key, item in value.items()
        ]
    if isinstance(value, (list, tuple)):
        return [digest(item, params) for item in value]
    if isinstance(value, Helper):
        return digest(vars(value), params)
    return value


def everything(optimizer):
    params = []
    for group in optimizer.param_groups:
        params += map(id, group['params'])
    kept = [optimizer.state, optimizer.param_groups]
    for name in ('count', 'pair', 'history', 'alias', 'meter'):
        kept.append(getattr(optimizer, name))
    kept += [optimizer.base.state, optimizer.base.param_groups]
    return digest(kept, params)


@pytest.mark.parametrize('before', [0, 3])
def test_the_whole_optimizer_comes_back(before):
    model = nn.Linear(3, 2)
    optimizer = KeepsEverywhere(model.parameters())
    train(model, optimizer, before)
    copy, expected = OptimizerCopy(optimizer), everything(optimizer)
    train(model, optimizer, 2)
    assert everything(optimizer) != expected
    copy.restore(optimizer)
    assert everything(optimizer) == expected
    assert optimizer.alias is optimizer.base.state
    assert optimizer.function is print
    # The copy itself does not change with the optimizer.
    train(model, optimizer, 2)
    copy.restore(optimizer)
    assert everything(optimizer) == expected


def test_tensors_are_restored_in_place():
    model = nn.Linear(3, 2)
    optimizer = AdamW(model.parameters(), lr=0.1)
    train(model, optimizer, 1)
    copy = OptimizerCopy(optimizer)
    moment = optimizer.state[model.weight]['exp_avg']
    value = moment.clone()
    train(model, optimizer, 1)
    copy.restore(optimizer)
    assert optimizer.state[model.weight]['exp_avg'] is moment
    assert torch.equal(moment, value)


def test_scheduled_values_are_left_alone():
    model = nn.Linear(3, 2)
    optimizer = AdamW(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    copy = OptimizerCopy(optimizer, scheduled={'betas'})
    train(model, optimizer, 1)
    schedule.step()
    (group,) = optimizer.param_groups
    group.update(betas=(0.5, 0.9), weight_decay=1.0)
    copy.restore(optimizer)
    assert (group['lr'], group['initial_lr']) == (0.05, 0.1)
    assert (group['betas'], group['weight_decay']) == ((0.5, 0.9), 0.01)


def test_buffers_that_have_grown_or_were_none():
    model = nn.Linear(3, 2)
    model.register_buffer('bank', torch.ones(2))
    model.register_buffer('late', None)
    model.register_buffer('gone', torch.ones(3))
    places = {name: (model, name) for name in model._buffers}

    def tensors():
        return {**dict(model.named_parameters()), **model._buffers}

    copy = StateCopy.of(tensors(), {})
    model.bank = torch.cat([model.bank, torch.zeros(2)])
    model.late, model.gone = torch.ones(1), None
    copy.restore(tensors(), {}, places)
    assert model.bank.tolist() == [1, 1]
    assert model.late is None
    assert model.gone.tolist() == [1, 1, 1]


def test_a_copy_that_does_not_fit_changes_nothing():
    model = nn.Linear(3, 2)
    copy = StateCopy.of(dict(model.named_parameters()), {})
    other = nn.Linear(3, 2)
    other.bias = nn.Parameter(torch.zeros(5))
    before = other.weight.clone()
    with pytest.raises(ValueError, match="'bias' had another shape"):
        copy.restore(dict(other.named_parameters()), {})
    assert torch.equal(other.weight, before)
