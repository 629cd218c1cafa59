"""Weights in half precision: guarded in bfloat16, checked in float16."""

import math

import pytest
import torch
from matrix import differing, everything
from torch import nn
from torch.optim import (
    SGD,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
)

from mmnanguard.core import Cause, GuardConfigError, TrainingHalted
from mmnanguard.core.rules.observation import NORM_LIMIT
from mmnanguard.numerics.base.norms import tensor_norms
from mmnanguard.optim import (
    NanGuardAmpOptimWrapper,
    NanGuardOptimWrapper,
    autocast_dtype,
    step_check,
)

BFLOAT16, FLOAT16 = torch.bfloat16, torch.float16
OPTIMIZERS = {
    'SGD': lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    'Adam': lambda p: Adam(p, lr=0.1, amsgrad=True),
    'AdamW': lambda p: AdamW(p, lr=0.1, foreach=False),
    'foreach AdamW': lambda p: AdamW(p, lr=0.1, foreach=True),
    'fused AdamW': lambda p: AdamW(p, lr=0.1, fused=True),
    'RMSprop': lambda p: RMSprop(p, lr=0.1, momentum=0.9),
    'Adamax': lambda p: Adamax(p, lr=0.1),
    'NAdam': lambda p: NAdam(p, lr=0.1),
    'RAdam': lambda p: RAdam(p, lr=0.1),
}
CHECKED = dict(check_step='always')


def build(make_optimizer, dtype=BFLOAT16, **guard):
    torch.manual_seed(0)
    model = nn.Linear(4, 2).to(dtype)
    optimizer = make_optimizer(model.parameters())
    wrapper = NanGuardOptimWrapper(optimizer, guard=guard or None)
    wrapper.guard.attach(object())
    return model, wrapper


def step(model, wrapper, grad=0.01, bias_grad=0.0):
    """Step on given gradients; return the reported causes."""
    with wrapper.optim_context(model):
        pass
    wrapper.guard.window.add_loss(torch.tensor(1.0))
    model.weight.grad = torch.full_like(model.weight, 0.0)
    model.weight.grad.view(-1)[0] = grad
    model.bias.grad = torch.full_like(model.bias, bias_grad)
    wrapper.step()
    wrapper.zero_grad()
    return [event.cause for event in wrapper.guard.take_events()]


# bfloat16


def largest_clean_gradient():
    """Return the largest bfloat16 number within the limit of a norm."""
    bits = torch.tensor(NORM_LIMIT).bfloat16()
    assert float(bits) <= NORM_LIMIT
    return float(bits)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_no_committed_step_overflows(name):
    """Gradients are at the edge, and moments are kept in bfloat16."""
    model, wrapper = build(OPTIMIZERS[name], check_step='never')
    edge = largest_clean_gradient()
    for turn in range(60):
        assert step(model, wrapper, edge * (-1) ** (turn // 30)) == []
    left = everything(model, wrapper)
    assert all(bool(tensor.isfinite().all()) for tensor in left.values())


def test_a_little_more_is_rejected_and_would_overflow():
    more = float(torch.tensor(2.0**64).bfloat16())
    model, wrapper = build(OPTIMIZERS['AdamW'])
    before = everything(model, wrapper)
    assert step(model, wrapper, more) == [Cause.NORM_OVERFLOW]
    assert differing(before, everything(model, wrapper)) == []
    sums = []
    for grad in (more, largest_clean_gradient()):
        param = nn.Parameter(torch.ones(1, dtype=BFLOAT16))
        plain = Adagrad([param])
        param.grad = torch.tensor([grad], dtype=BFLOAT16)
        plain.step()
        sums.append(plain.state[param]['sum'].item())
    assert math.isinf(sums[0])
    assert math.isfinite(sums[1])


def test_a_state_that_only_grows_needs_each_step_checked():
    """Adagrad's sum has no decay, so the second such square overflows."""
    model, wrapper = build(Adagrad, **CHECKED)
    edge = largest_clean_gradient()
    assert step(model, wrapper, edge) == []
    before = everything(model, wrapper)
    assert step(model, wrapper, edge) == [Cause.STEP_NONFINITE]
    assert differing(before, everything(model, wrapper)) == []


def test_norms_are_summed_in_float32():
    tensors = [torch.full((300,), 3.0, dtype=BFLOAT16), torch.ones(2)]
    norms = tensor_norms(tensors[:1], 2.0) + tensor_norms(tensors, 2.0)
    assert {norm.dtype for norm in norms} == {torch.float32}
    # The nearest bfloat16 numbers are 51.75 and 52.
    assert [float(norm) for norm in norms[:2]] == [
        pytest.approx(math.sqrt(2700), rel=1e-5)
    ] * 2


class Mixed(nn.Module):
    """A frozen bfloat16 layer with a LoRA pair in float32, and a head."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(4, 4).bfloat16().requires_grad_(False)
        self.down = nn.Linear(4, 2, bias=False)
        self.up = nn.Linear(2, 4, bias=False)
        self.head = nn.Linear(4, 2).bfloat16()

    def forward(self, inputs):
        low_rank = self.up(self.down(inputs))
        features = self.base(inputs.bfloat16()) + low_rank.bfloat16()
        return self.head(features).float().square().mean()


@pytest.mark.parametrize('where', ['down', 'head'])
def test_mixed_lists_leave_no_trace(where):
    """Adapters in float32 beside weights in bfloat16."""
    ends = []
    for strikes in (True, False):
        torch.manual_seed(0)
        model = Mixed()
        trained = [p for p in model.parameters() if p.requires_grad]
        wrapper = NanGuardOptimWrapper(AdamW(trained, lr=0.01))
        wrapper.guard.attach(object())
        for turn in range(6):
            inputs = torch.randn(3, 4)
            if turn == 3 and not strikes:
                continue
            with wrapper.optim_context(model):
                loss = model(inputs)
            wrapper.backward(loss)
            if turn == 3:
                getattr(model, where).weight.grad[0, 0] = math.nan
            wrapper.step()
            wrapper.zero_grad()
        events = wrapper.guard.take_events()
        assert [event.cause.value for event in events] == (
            ['grad_nonfinite'] if strikes else []
        )
        ends.append(everything(model, wrapper))
    assert differing(*ends) == []


@pytest.mark.parametrize('dtype', [None, 'auto'])
def test_autocast_takes_the_type_of_the_weights(dtype):
    """MMEngine's choice on a GPU is float16, which halves the range."""
    assert autocast_dtype.choose_dtype(dtype, 'npu', BFLOAT16) is BFLOAT16
    assert autocast_dtype.choose_dtype(None, 'npu', torch.float32) is FLOAT16
    model = nn.Linear(2, 2).bfloat16()
    wrapper = NanGuardAmpOptimWrapper(SGD(model.parameters()), dtype=dtype)
    assert wrapper.cast_dtype is BFLOAT16
    assert not wrapper.loss_scaler.is_enabled()


# float16


def test_float16_weights_are_refused_unless_each_step_is_checked():
    with pytest.raises(GuardConfigError) as error:
        build(OPTIMIZERS['SGD'], FLOAT16)
    assert 'to be trained is torch.float16' in str(error.value)
    assert "guard.check_step='always'" in str(error.value)
    build(OPTIMIZERS['SGD'], FLOAT16, **CHECKED)


def test_thawed_float16_weights_are_refused():
    model, wrapper = build(OPTIMIZERS['SGD'])
    other = nn.Parameter(torch.ones(2, dtype=FLOAT16), requires_grad=False)
    wrapper.optimizer.add_param_group(dict(params=[other]))
    step(model, wrapper)
    other.requires_grad_(True)
    other.grad = torch.ones_like(other)
    with pytest.raises(GuardConfigError, match='to be trained is'):
        step(model, wrapper)


@pytest.mark.parametrize('name', ['SGD', 'AdamW', 'foreach AdamW'])
def test_a_float16_step_that_overflows_leaves_no_trace(name):
    """The gradient is finite, the weight after the step is not."""
    ends = []
    for struck in (True, False):
        model, wrapper = build(
            lambda p: scaled(OPTIMIZERS[name](p)), FLOAT16, **CHECKED
        )
        for turn in range(7):
            if turn == 5:
                if not struck:
                    continue
                assert step(model, wrapper, 6e4) == [Cause.STEP_NONFINITE]
            else:
                assert step(model, wrapper, 0.5, 0.5) == []
        ends.append(everything(model, wrapper))
    assert differing(*ends) == []


def scaled(optimizer: Optimizer) -> Optimizer:
    """Give the optimizer arguments that float16 bears, and a high rate."""
    for group in optimizer.param_groups:
        group['lr'] = 2.0 if isinstance(optimizer, SGD) else 1e-3
        group['eps'] = 1e-4
    return optimizer


def step_forever(model, wrapper):
    while True:
        step(model, wrapper, 0.0)


def test_an_eps_that_is_zero_in_float16_is_named():
    model, wrapper = build(OPTIMIZERS['AdamW'], FLOAT16, **CHECKED)
    wrapper.guard._listener = None
    with pytest.raises(TrainingHalted) as error:
        step_forever(model, wrapper)
    assert 'eps=1e-08 is 0 in float16' in str(error.value)


def test_float16_weights_need_an_optimizer_that_can_be_copied(monkeypatch):
    model, wrapper = build(OPTIMIZERS['SGD'], FLOAT16, **CHECKED)
    monkeypatch.setattr(step_check, 'OptimizerCopy', None)
    with pytest.raises(GuardConfigError, match='SGD cannot be copied'):
        step(model, wrapper)
