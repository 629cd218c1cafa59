"""A sample looks at the model's forward pass, and further where it must."""

import math

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn
from torch.overrides import BaseTorchFunctionMode
from torch.overrides import _get_current_function_mode_stack as modes
from torch.utils.checkpoint import checkpoint
from toys import assert_same, guard_hooks, make_runner, wrapper

from mmnanguard.numerics.stability.extremes import Extremes
from mmnanguard.numerics.stability.window_probe import WindowProbe


class LogHead(nn.Module):
    """A head with an operand, and with a part that backward runs again."""

    def __init__(self, has_checkpoint):
        super().__init__()
        self.fc = nn.Linear(1, 1)
        self.has_checkpoint = has_checkpoint

    def forward(self, x):
        if self.has_checkpoint:
            # The first pass is without gradients.
            return checkpoint(self.log, x, use_reentrant=True)
        return self.log(x)

    def log(self, x):
        return self.fc(x).exp().log()


@MODELS.register_module()
class LogNet(BaseModel):
    def __init__(self, has_checkpoint=False):
        super().__init__()
        self.stem = nn.Linear(1, 1)
        self.head = LogHead(has_checkpoint)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = torch.stack(list(inputs)).mean((1, 2, 3))[:, None]
        return dict(loss=self.head(self.stem(x)).square().mean())


@MODELS.register_module()
class OwnTrainStep(LogNet):
    """A model whose loss is no part of a forward pass."""

    def train_step(self, data, optim_wrapper):
        with optim_wrapper.optim_context(self):
            data = self.data_preprocessor(data, True)
            x = torch.stack(list(data['inputs'])).mean((1, 2, 3))[:, None]
            loss = self.stem(x).exp().log().square().mean()
        optim_wrapper.update_params(loss)
        return dict(loss=loss.detach())


class CountModes(Hook):
    """Count the modes that see each step of the optimizer."""

    def __init__(self):
        self.counts = []

    def before_train(self, runner):
        optimizer = runner.optim_wrapper.optimizer
        optimizer.register_step_pre_hook(self.count)

    def count(self, optimizer, args, kwargs):
        self.counts.append(len(modes()))


def train(work_dir, model, **hooks):
    runner = make_runner(
        work_dir,
        wrapper(lr=1e-3),
        model=model,
        default_hooks={**guard_hooks(), **hooks},
    )
    runner.train()
    return runner


MODELS_BY_PLACE = {
    'forward': (dict(type='LogNet'), {'head': 10}),
    'backward': (dict(type='LogNet', has_checkpoint=True), {}),
    # The first sample looks at the forward pass only.
    'train_step': (dict(type='OwnTrainStep'), {'': 9}),
}


@pytest.mark.parametrize('place', MODELS_BY_PLACE)
def test_operands_are_found_where_they_are(tmp_path, place):
    model, expected = MODELS_BY_PLACE[place]
    in_steps = CountModes()
    runner = train(
        tmp_path / 'monitored',
        model,
        stability=dict(type='mmnanguard.StabilityMonitorHook', interval=1),
        steps=in_steps,
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4),
    )
    (hook,) = [h for h in runner.hooks if type(h).__name__.startswith('Stab')]
    operands = hook._monitor.operands.items()
    assert {name: len(points) for name, points in operands} == expected
    # There, a mode costs time for each weight.
    is_partial = place == 'train_step'
    assert in_steps.counts == [0] + [is_partial] * 9
    path = tmp_path / 'monitored' / 'iter_4.pth'
    saved = torch.load(path, weights_only=False)['nanguard_stability']
    assert saved['is_partial'] is is_partial
    assert_same(runner, train(tmp_path / 'plain', model))


def test_a_pass_that_fails_early_leaves_the_users_mode():
    net = nn.Sequential(nn.Softmax(0))

    def fail(module, args):
        raise ValueError('no batch')

    failing = net.register_forward_pre_hook(fail)
    probe = WindowProbe(dict(net.named_children()), {}, set(), None, net)
    with BaseTorchFunctionMode() as mode:
        with pytest.raises(ValueError, match='no batch'):
            net(torch.ones(2))
        assert modes() == [mode]
        failing.remove()
        net(torch.ones(2))
        assert modes() == [mode]
    assert probe.sample(1, 0.1, False).logits == {'0': 1.0}
    assert not net._forward_hooks
    assert not net._forward_pre_hooks


@pytest.mark.parametrize('size', [-7.0, 7.0, float('nan')])
def test_a_module_that_runs_often_has_two_numbers(size):
    """An RNN, or a long window, would keep a number of each run otherwise."""
    extremes = Extremes()
    for number in (1.0, size, *[-2.0] * 50):
        extremes.add('cell', torch.tensor([0.5, number]))
    extremes.add('cell', torch.tensor([3.0], dtype=torch.float16))
    assert extremes.dtypes() == [
        ('cell', torch.float32),
        ('cell', torch.float16),
    ]
    numbers = [number.item() for _, number in extremes.numbers()]
    assert len(numbers) == 4
    is_nan = math.isnan(size)
    assert any(map(math.isnan, numbers)) is is_nan
    assert is_nan or max(numbers) == 7


@pytest.mark.parametrize('kdim', [8, 6])
@pytest.mark.parametrize('is_batched', [True, False])
def test_logits_within_multi_head_attention(kdim, is_batched):
    torch.manual_seed(0)
    heads = nn.MultiheadAttention(8, 2, kdim=kdim, vdim=8, batch_first=True)
    nn.init.normal_(heads.in_proj_bias)
    net = nn.ModuleList([heads])
    net.forward = heads.forward
    probe = WindowProbe(dict(net.named_modules()), {}, set(), None, net)
    query, key = torch.randn(2, 3, 8), torch.randn(2, 5, kdim)
    values = torch.randn(2, 5, 8)
    if not is_batched:
        query, key, values = query[0], key[0], values[0]
    _, shares = net(query, key, values, average_attn_weights=False)
    sample = probe.sample(1, 0.1, False)
    if kdim == 8:
        weights = heads.in_proj_weight.chunk(3)
    else:
        weights = heads.q_proj_weight, heads.k_proj_weight
    biases = heads.in_proj_bias.chunk(3)
    queries = (query @ weights[0].T + biases[0]).unflatten(-1, (2, 4))
    keys = (key @ weights[1].T + biases[1]).unflatten(-1, (2, 4))
    logits = torch.einsum('...qhe,...khe->...hqk', queries, keys) / 2
    assert torch.allclose(logits.softmax(-1), shares, atol=1e-5)
    (largest,) = sample.logits.values()
    assert largest == pytest.approx(logits.max().item(), rel=1e-4)
