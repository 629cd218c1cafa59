"""The probe names the first operation that makes bad numbers of good ones."""

import gc
import inspect
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmnanguard.numerics.probe.module_probe import ModuleProbe


class Net(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.counted = nn.BatchNorm1d(4)
        self.run = run

    def forward(self, x):
        return self.run(self, x)


class Root(nn.Module):
    """A separate module whose last operation is bad in backward."""

    def forward(self, x):
        return (x * 0) ** 0.7


def probe(run, x=None, inputs=True, net=None):
    """Return the origin of bad numbers in the output or else the gradients."""
    torch.manual_seed(0)
    net = net or Net(run)
    x = torch.randn(3, 4) if x is None else x
    probe = ModuleProbe(net, [(x, (0, 1, 2))] if inputs else [])
    with probe:
        output = net(x)
        output.sum().backward()
    if not torch.isfinite(output).all():
        return probe.origin_of(output)
    bad = [
        param.grad
        for param in net.parameters()
        if param.grad is not None and not torch.isfinite(param.grad).all()
    ]
    return probe.origin_of(bad[-1]) if bad else None


def marked(x, row=1):
    return (torch.arange(3) == row).float()[:, None]


def sound_rows_of_bad(net, x):
    x = x / (1 - marked(x))
    return (net.first(x[2:]) * 0).reciprocal()


def sound_view_before_bad_is_used(net, x):
    x = x / (1 - marked(x))
    x[2:].relu()
    return net.first(x)


def mask_and_fault(net, x):
    mask = torch.full((4, 4), -math.inf).triu(1)
    scores = x @ x.t()
    scores = F.pad(scores, (0, 1, 0, 1)) + mask
    return net.first(scores.softmax(-1) / 0)


def all_masked(net, x):
    return net.first(x.masked_fill(marked(x) > 0, -math.inf).softmax(-1))


def log_where(net, x):
    return net.first(torch.where(x > 0, x.clamp(min=0).log(), 0.0))


def cleaned(net, x):
    x = x / (1 - marked(x))
    x.nan_to_num_(0.0, 0.0, 0.0)
    return net.first(x) / (1 - marked(x, 2))


def from_numpy(net, x):
    x = x + torch.from_numpy(np.array([1, math.nan, 1, 1], np.float32))
    return net.first(x)


@pytest.mark.parametrize(
    ('run', 'op', 'module', 'samples', 'is_fill'),
    [
        (sound_view_before_bad_is_used, 'aten.div', '', (1,), False),
        (sound_rows_of_bad, 'aten.reciprocal', '', (2,), False),
        (mask_and_fault, 'aten.div', '', (), False),
        (all_masked, 'aten._softmax', '', (1,), False),
        (cleaned, 'aten.div', '', (2,), False),
        (from_numpy, '', '', (), False),
    ],
)
def test_forward(run, op, module, samples, is_fill):
    origin = probe(run)
    assert (origin.op, origin.module) == (op, module)
    assert origin.phase == 'forward'
    assert origin.samples == samples
    assert origin.is_fill == is_fill
    if op:
        assert origin.source.startswith('test_module_probe.py:')


@pytest.mark.parametrize(
    ('meet', 'op', 'is_pole'),
    [
        (lambda masked: masked.log_softmax(-1), 'aten.masked_fill', None),
        (lambda masked: masked * 0, 'aten.mul', True),
        (lambda masked: masked @ torch.zeros(4, 4), 'aten.mm', True),
    ],
)
def test_a_mask_that_is_not_left_out(meet, op, is_pole):
    first = torch.arange(4) == 0
    origin = probe(
        lambda net, x: meet(net.first(x).masked_fill(first, -math.inf))
    )
    assert (origin.op, origin.is_pole) == (op, is_pole)
    assert origin.mask.startswith('aten.masked_fill at test_module_probe.py:')


def only_finite(loss):
    return loss[torch.isfinite(loss)]


@pytest.mark.parametrize(
    ('run', 'derivative'),
    [
        (lambda net, x: (net.first.bias - x).square().nansum(), 'pow'),
        (lambda net, x: only_finite((net.first.bias - x).exp()), 'exp'),
        (lambda net, x: (net.first.bias * x).nan_to_num(), 'mul'),
        (lambda net, x: only_finite(net.first(x)), 'addmm'),
        (lambda net, x: net.first.bias.atan2(x).nanmean(), 'atan2'),
    ],
)
def test_a_bad_input_that_is_left_out_too_late(run, derivative):
    x = torch.ones(3, 4)
    x[1, 2] = math.nan
    origin = probe(run, x)
    assert (origin.phase, origin.derivative) == ('input', derivative)
    assert origin.samples == (1,)
    assert origin.source.startswith('test_module_probe.py:')
    # A loss that keeps it has no derivative to name.
    assert probe(lambda net, x: net.first(x), x).op == ''


@pytest.mark.parametrize('has_masks', [False, True])
def test_a_mask_in_the_batch(has_masks):
    x = torch.ones(3, 4)
    x[:, 2] = -math.inf
    net = Net(None)
    probe = ModuleProbe(net, [(x, (0, 1, 2))], has_masks)
    with probe:
        loss = (net.first(torch.ones(4)) + x).log_softmax(-1) * 0
    origin = probe.origin_of(loss)
    assert (origin.phase != 'input') == has_masks
    assert origin.mask == ('the batch' if has_masks else '')


def test_a_fill_that_overflows_is_no_mask():
    def run(net, x):
        lowest = torch.tensor(-1e9)
        return torch.where(x > 0, net.first(x).half(), lowest.half())

    origin = probe(run)
    assert (origin.op, origin.mask) == ('aten._to_copy', '')
    # The operation that writes the mask makes a smaller number of it.
    lowest = torch.tensor(-1e9)
    origin = probe(
        lambda net, x: torch.where(x > 0, net.first(x).half(), lowest)
    )
    assert (origin.op, origin.mask) == ('aten.where', '')


def test_a_log_that_where_leaves_out():
    assert probe(log_where) is None


def test_numbers():
    net = Net(lambda net, x: net.first(x.half() * 3e4).float())
    net.first.half()
    with torch.no_grad():
        net.first.weight.fill_(1.0)
    origin = probe(None, torch.full((3, 4), 1.5), net=net)
    assert origin.module == 'first'
    assert origin.dtype == 'float16'
    assert origin.input_absmax == 44992.0  # nearest to 45000
    assert origin.output_absmax == math.inf


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_weights(value):
    net = Net(lambda net, x: net.first(x - x))  # Inf times 0 is NaN
    net.first.weight.data[0, 0] = value
    origin = probe(None, net=net)
    assert (origin.phase, origin.tensor) == ('weight', 'first.weight')


def test_a_mask_in_a_buffer_is_no_bad_weight():
    net = Net(lambda net, x: net.mask + net.first(x) / (1 - marked(x)))
    net.register_buffer('mask', torch.tensor([0.0, 0.0, 0.0, -math.inf]))
    assert probe(None, net=net).op == 'aten.div'


def test_a_tensor_that_the_model_keeps_is_named():
    net = Net(lambda net, x: net.first(x) + net.first.memory['last'][0])
    net.first.memory = {'last': [torch.full((4,), math.nan)]}
    origin = probe(None, net=net)
    assert (origin.phase, origin.op) == ('forward', '')
    assert origin.tensor == 'first.memory'
    # This window may have spoiled it.
    bad = net.first.memory['last'][0]
    net.run = lambda net, x: bad + net.first(x) / (1 - marked(x))
    assert probe(None, net=net).op == 'aten.div'


def test_a_mask_that_the_model_keeps_is_no_bad_tensor():
    net = Net(lambda net, x: (net.first(x) + net.mask).softmax(1))
    net.mask = torch.full((4,), -math.inf)
    assert probe(None, net=net).op == 'aten._softmax'


# The module is that whose forward the gradient belongs to, wherever
# operations without a gradient come in between, or a checkpoint.
def plain(net, x):
    return net.root(net.first(x))


def with_counters(net, x):
    return net.counted(net.root(net.first(x)))


def checkpointed(net, x):
    return checkpoint(lambda x: plain(net, x), x, use_reentrant=False)


def reentrant(net, x):
    return checkpoint(
        lambda x: plain(net, x), x.requires_grad_(), use_reentrant=True
    )


@pytest.mark.parametrize(
    'run', [plain, with_counters, checkpointed, reentrant]
)
def test_backward(run):
    net = Net(run)
    net.root = Root()
    origin = probe(None, net=net)
    assert origin.phase == 'backward'
    assert (origin.module, origin.op) == ('root', 'aten.pow')
    assert origin.derivative == 'pow'


def root_of_zero(net, x):
    return (net.first(x) * 0).square().sum().sqrt()


def slope_of_root(net, x):
    """A force, or a gradient penalty: a derivative is part of the output."""
    points = net.first(x).detach().requires_grad_()
    size = net.second(points * 0).mul(0).square().sum().sqrt()
    (slope,) = torch.autograd.grad(size, points, create_graph=True)
    return 0 * slope.sum() + net.first(x).sum()


@pytest.mark.parametrize('run', [root_of_zero, slope_of_root])
def test_the_operation_whose_derivative_is_bad(run):
    origin = probe(run)
    assert (origin.phase, origin.op) == ('backward', 'aten.div')
    assert origin.derivative == 'sqrt'
    # The line of the root, not that of autograd.grad.
    lines, first = inspect.getsourcelines(run)
    offset = int(origin.source.split(':')[1]) - first
    assert '.sqrt()' in lines[offset]


def test_a_replay_keeps_no_activations():
    net = Net(lambda net, x: net.first(x))
    probe = ModuleProbe(net)
    big = []

    with probe, torch.no_grad():
        for _ in range(3):
            y = torch.full((1000,), math.nan) + 1
            big.append(
                torch.multiprocessing.reductions.StorageWeakRef(
                    y.untyped_storage()
                )
            )
            del y
    gc.collect()
    assert all(ref.expired() for ref in big)


class Mix(torch.autograd.Function):
    """A function whose own backward divides by 1 - x, which may be 0."""

    @staticmethod
    def forward(ctx, inputs):
        ctx.save_for_backward(inputs)
        return inputs * 2

    @staticmethod
    def backward(ctx, grad):
        return grad / (1 - ctx.saved_tensors[0]) * 0


def test_the_line_within_an_own_backward():
    origin = probe(lambda net, x: Mix.apply(net.first(x) * 0 + 1))
    assert (origin.phase, origin.op) == ('backward', 'aten.div')
    assert origin.derivative == 'MixBackward'
    line = Mix.backward.__code__.co_firstlineno + 2
    assert origin.source == f'test_module_probe.py:{line}'
