"""Applied updates equal PyTorch's unscale_, clip_grad_norm_ and step."""

import pytest
import torch
from torch import nn
from toys import total_norm

from mmnanguard.core import NormClip
from mmnanguard.numerics.update.apply import apply_update, multiply
from mmnanguard.numerics.update.grad_rules import ValueClip
from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER, GradScaler

DTYPES = (torch.float32, torch.float64, torch.float32)
OPTIMIZERS = {
    'sgd': (torch.optim.SGD, dict(momentum=0.9, weight_decay=0.01)),
    'adamw': (torch.optim.AdamW, {}),
    'fused sgd': (torch.optim.SGD, dict(momentum=0.9, fused=True)),
    'fused adamw': (torch.optim.AdamW, dict(fused=True)),
}


def build(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    make, keys = OPTIMIZERS[name]
    return model, make(model.parameters(), lr=0.1, **keys)


def backward(model, optimizer, index, scale):
    """Compute the scaled gradients of batch ``index``."""
    generator = torch.Generator().manual_seed(index)
    data = torch.randn(5, 4, generator=generator)
    optimizer.zero_grad()
    (model(data).square().sum() * scale).backward()
    return [param.grad for param in model.parameters()]


def everything(model, optimizer):
    tensors = [*model.parameters(), *(p.grad for p in model.parameters())]
    for values in optimizer.state.values():
        tensors += [values[key] for key in sorted(values)]
    return tensors


def train_plainly(name, scale, clip):
    """Train as PyTorch does; ``clip`` takes the parameters."""
    model, optimizer = build(name)
    scaler = GradScaler('cpu', init_scale=scale)
    for index in range(3):
        scaler.scale(torch.ones(()))
        backward(model, optimizer, index, scale)
        scaler.unscale_(optimizer)
        if not HAS_CPU_SCALER:
            for param in model.parameters():
                param.grad.mul_(1 / scale)
        clip(list(model.parameters()))
        scaler.step(optimizer)
        scaler.update()
    return everything(model, optimizer)


def train(name, scale, max_norm=None, grad_rule=None):
    """Train with the package's functions."""
    model, optimizer = build(name)
    for index in range(3):
        grads = backward(model, optimizer, index, scale)
        coef = 1.0
        if max_norm is not None:
            exact = [grad.double() / scale for grad in grads]
            norm = total_norm(exact).item()
            coef = NormClip(max_norm)(norm)
            assert (coef < 1) is (max_norm < 1)
        params = list(model.parameters())
        apply_update(optimizer, params, grads, scale, coef, grad_rule)
    return everything(model, optimizer)


@pytest.mark.parametrize('name', OPTIMIZERS)
@pytest.mark.parametrize(
    ('scale', 'max_norm'),
    [(1.0, 0.05), (1024.0, 1e6), (1024.0, 0.05), (0.125, 1e6), (3.0, 1e6)],
)
def test_one_factor_does_what_unscale_and_clip_do(name, scale, max_norm):
    expected = train_plainly(
        name,
        scale,
        lambda params: torch.nn.utils.clip_grad_norm_(params, max_norm),
    )
    got = train(name, scale, max_norm)
    assert len(got) == len(expected)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_without_a_factor_it_is_a_plain_step_bit_for_bit(name):
    model, optimizer = build(name)
    for index in range(3):
        backward(model, optimizer, index, 1.0)
        optimizer.step()
    for left, right in zip(train(name, 1.0), everything(model, optimizer)):
        assert torch.equal(left, right)


@pytest.mark.parametrize('name', OPTIMIZERS)
@pytest.mark.parametrize('scale', [1.0, 1024.0])
def test_value_clip_is_pytorchs_bit_for_bit(name, scale):
    expected = train_plainly(
        name,
        scale,
        lambda params: torch.nn.utils.clip_grad_value_(params, 0.3),
    )
    got = train(name, scale, grad_rule=ValueClip(0.3))
    for left, right in zip(got, expected):
        assert torch.equal(left, right)


@pytest.mark.parametrize(
    'dtype', [torch.float16, torch.bfloat16, torch.float64]
)
def test_gradients_of_other_dtypes(dtype):
    param = nn.Parameter(torch.ones(3, dtype=dtype))
    param.grad = torch.full((3,), 64.0, dtype=dtype)
    optimizer = torch.optim.SGD([param], lr=0.5)
    apply_update(optimizer, [param], [param.grad], 128.0, 0.5)
    assert param.tolist() == [0.875] * 3


class Recorder:
    """An optimizer that records its arguments, as if PyTorch's own."""

    param_groups = (dict(params=()),)
    _optimizer_step_pre_hooks = ()

    def __init__(self, grads=(), fused=False, error=None):
        self.grads, self.error = grads, error
        self.calls = []
        self._step_supports_amp_scaling = fused

    def step(self, **kwargs):
        scale = getattr(self, 'grad_scale', None)
        assert not hasattr(self, 'found_inf')
        self.calls.append(
            dict(
                grads=[grad.tolist() for grad in self.grads],
                grad_scale=None if scale is None else scale.item(),
                **kwargs,
            )
        )
        if self.error is not None:
            raise self.error

    # Only PyTorch's own step is known to use the scale in its kernel.
    step.__module__ = torch.optim.SGD.__module__


def seen_by_step(fused, scale, coef, grad_rule=None, **kwargs):
    grads = [torch.tensor([8.0, -2.0])]
    optimizer = Recorder(grads, fused)
    apply_update(optimizer, grads, grads, scale, coef, grad_rule, **kwargs)
    assert not hasattr(optimizer, 'grad_scale')
    (call,) = optimizer.calls
    return call.pop('grads')[0], call.pop('grad_scale'), call


@pytest.mark.parametrize(
    ('fused', 'scale', 'coef', 'grad_rule', 'grad', 'grad_scale'),
    [
        (False, 4.0, 1.0, None, [2.0, -0.5], None),
        (False, 4.0, 0.5, None, [1.0, -0.25], None),
        (False, 1.0, 1.0, None, [8.0, -2.0], None),
        # The kernel divides.
        (True, 4.0, 1.0, None, [8.0, -2.0], 4.0),
        (True, 4.0, 0.5, None, [8.0, -2.0], 8.0),
        (True, 1.0, 0.5, None, [8.0, -2.0], 2.0),
        (True, 1.0, 1.0, None, [8.0, -2.0], None),
        # A rule of tensors sees unscaled ones.
        (False, 4.0, 1.0, ValueClip(1.0), [1.0, -0.5], None),
        (True, 4.0, 1.0, ValueClip(1.0), [1.0, -0.5], None),
        (True, 1.0, 1.0, ValueClip(1.0), [1.0, -1.0], None),
    ],
)
def test_what_the_step_sees(fused, scale, coef, grad_rule, grad, grad_scale):
    got, got_scale, rest = seen_by_step(fused, scale, coef, grad_rule)
    assert (got, got_scale) == (grad, grad_scale)
    assert rest == {}


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('scale', [1.0, 4.0])
@pytest.mark.parametrize('grad_rule', [None, ValueClip(1.0)])
def test_arguments_reach_the_step(fused, scale, grad_rule):
    *_, rest = seen_by_step(fused, scale, 1.0, grad_rule, closure='x')
    assert rest['closure'] == 'x'


@pytest.mark.parametrize('grad_rule', [None, lambda params, grads: None])
def test_nothing_is_touched_without_need(grad_rule):
    grads = [torch.ones(2)]
    apply_update(Recorder(), grads, grads, 1.0, 1.0, grad_rule)
    assert grads[0]._version == 0


def test_the_fused_kernel_takes_the_whole_factor(monkeypatch):
    """The fused kernel needs no extra pass over the gradients."""
    monkeypatch.setattr(torch, '_foreach_mul_', None)
    train('fused adamw', 8.0, 0.05)


def test_elsewhere_than_on_a_cpu_the_factor_is_a_number(monkeypatch):
    """A GPU of PyTorch 2.1 accepts no CPU tensor as a factor."""
    factors = []
    monkeypatch.setattr(
        torch, '_foreach_mul_', lambda grads, factor: factors.append(factor)
    )
    multiply([torch.ones(2, device='meta')], 0.5)
    assert [(type(factor), factor) for factor in factors] == [(float, 0.5)]


@pytest.mark.parametrize('scale', [1.0, 4.0])
@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('grad_rule', [None, ValueClip(1.0)])
def test_no_gradients(fused, scale, grad_rule):
    optimizer = Recorder(fused=fused)
    apply_update(optimizer, [], [], scale, 1.0, grad_rule, closure='x')
    (call,) = optimizer.calls
    assert call == dict(grads=[], grad_scale=None, closure='x')


def test_no_marks_are_left_after_an_error():
    grads = [torch.ones(2)]
    optimizer = Recorder(grads, fused=True, error=KeyError('step'))
    with pytest.raises(KeyError, match='step'):
        apply_update(optimizer, grads, grads, 4.0, 1.0)
    assert optimizer.calls[0]['grad_scale'] == 4.0
    assert not hasattr(optimizer, 'grad_scale')


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_no_marks_are_left_on_a_real_optimizer(name):
    model, optimizer = build(name)
    grads = backward(model, optimizer, 0, 4.0)
    apply_update(optimizer, grads, grads, 4.0, 1.0)
    assert not hasattr(optimizer, 'grad_scale')


def test_another_default_dtype():
    """PyTorch's fused kernels take a scale of float32 only."""
    model, optimizer = build('fused adamw')
    grads = backward(model, optimizer, 0, 4.0)
    torch.set_default_dtype(torch.float64)
    try:
        apply_update(optimizer, grads, grads, 4.0, 1.0)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_factor_is_not_rounded_for_those_that_are_finer():
    params = [nn.Parameter(torch.ones(3, dtype=d)) for d in DTYPES]
    for param in params:
        param.grad = torch.ones_like(param)
    grads = [param.grad for param in params]
    sgd = torch.optim.SGD(params, lr=1.0)

    apply_update(sgd, params, grads, scale=1.0, clip_coef=0.1)

    for grad in grads:
        assert torch.equal(grad, torch.full_like(grad, 0.1))
