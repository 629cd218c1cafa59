"""A clip reaches the gradients, whatever stands around a fused kernel."""

import pytest
import torch
from mmengine.optim import LinearLR, OptimWrapper
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mmnanguard.numerics.update import apply
from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER
from mmnanguard.optim import NanGuardOptimWrapper

pytestmark = pytest.mark.skipif(
    not HAS_CPU_SCALER, reason='a fused optimizer on a CPU needs torch>=2.4'
)
MAX_NORM = 0.05


class Delegating(torch.optim.Optimizer):
    """An optimizer that lets another one step, as Lookahead does."""

    def __init__(self, params):
        self.__dict__['inner'] = plain(params)
        super().__init__(self.inner.param_groups, dict(lr=0.5))
        self.inner.param_groups = self.param_groups

    def __getattr__(self, name):
        return getattr(self.__dict__['inner'], name)

    def step(self, closure=None):
        self.inner.step()


class Copying(torch.optim.SGD):
    """An optimizer that has taken over the attributes of another one."""

    def __init__(self, params):
        inner = plain(params)
        self.__dict__.update(inner.__dict__)
        self.inner = inner

    def step(self, closure=None):
        self.inner.step()


class Adding(torch.optim.SGD):
    """A subclass that changes gradients before its step."""

    def step(self, closure=None):
        for group in self.param_groups:
            for param in group['params']:
                param.grad.add_(param, alpha=1e-3)
        super().step()


def plain(params):
    return torch.optim.SGD(params, lr=0.5, fused=True)


def patched(params):
    """Return an optimizer whose step a user has replaced."""
    optimizer = plain(params)
    step = optimizer.step

    def noisy_step(closure=None):
        for group in optimizer.param_groups:
            for param in group['params']:
                param.grad.add_(1e-3)
        step()

    optimizer.step = noisy_step
    return optimizer


def hooked(params):
    optimizer = plain(params)

    def decay(optimizer, *_):
        for group in optimizer.param_groups:
            for param in group['params']:
                param.grad.add_(param, alpha=1e-3)

    optimizer.register_step_pre_hook(decay)
    return optimizer


def train(wrapper_type, make_optimizer, schedule=None):
    """Return the weights after two clipped updates."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    wrapper = wrapper_type(
        make_optimizer(model.parameters()), clip_grad=dict(max_norm=MAX_NORM)
    )
    if schedule is not None:
        schedule(wrapper)
    for _ in range(2):
        with wrapper.optim_context(model):
            loss = model(torch.ones(3, 4)).square().sum()
        wrapper.update_params(loss)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    'make_optimizer',
    [
        plain,
        Delegating,
        Copying,
        lambda params: Adding(params, lr=0.5, fused=True),
        patched,
        hooked,
    ],
    ids=['plain', 'delegates', 'copies', 'subclass', 'patched', 'hook'],
)
def test_an_update_is_mmengines(make_optimizer):
    expected = train(OptimWrapper, make_optimizer)
    got = train(NanGuardOptimWrapper, make_optimizer)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def read_norms(register):
    """Return the gradient norms that a hook sees, which it only reads."""
    norms = []

    def note(optimizer, *_):
        (group,) = optimizer.param_groups
        grads = [param.grad.flatten() for param in group['params']]
        norms.append(torch.cat(grads).norm())

    def make_optimizer(params):
        optimizer = plain(params)
        handles.append(register(optimizer)(note))
        return optimizer

    handles = []
    try:
        train(NanGuardOptimWrapper, make_optimizer)
    finally:
        for handle in handles:
            handle.remove()
    return norms


@pytest.mark.parametrize(
    'register',
    [
        lambda optimizer: optimizer.register_step_pre_hook,
        lambda optimizer: optimizer.register_step_post_hook,
        lambda optimizer: register_optimizer_step_pre_hook,
    ],
    ids=['before', 'after', 'global'],
)
def test_hooks_see_clipped_gradients(register):
    norms = read_norms(register)
    assert len(norms) == 2
    assert max(norms) <= MAX_NORM * 1.001


def by_mmengine(wrapper):
    LinearLR(wrapper.optimizer, start_factor=0.5, end=2)


def by_pytorch(wrapper):
    torch.optim.lr_scheduler.LambdaLR(wrapper.optimizer, lambda epoch: 1.0)


@pytest.mark.parametrize('schedule', [None, by_mmengine, by_pytorch])
def test_a_schedule_keeps_the_kernel(schedule, monkeypatch):
    """Schedulers replace ``optimizer.step`` to count the steps."""

    def refuse(grads, factor):
        raise AssertionError('gradients were multiplied in a pass of its own')

    monkeypatch.setattr(apply, 'multiply', refuse)
    train(NanGuardOptimWrapper, plain, schedule)
