"""A norm above the threshold lowers the learning rate of some updates."""

import copy
import inspect

import pytest
import torch
from mmengine.optim import scheduler
from torch import nn

from mmnanguard.core import GuardConfigError, GuardPolicy
from mmnanguard.optim import NanGuardAmpOptimWrapper, NanGuardOptimWrapper

NORMS = (1.0, 1.0, 50.0, 1.0, 1.0, 80.0, 90.0, *[1.0] * 8)
BACKOFF = dict(above=10, factor=0.5, floor=0.2, recovery=4)
# 1 - (1 - factor) * share still to come
FACTORS = (
    *(1.0, 1.0, 0.5, 0.625, 0.75, 0.375, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0),
    *(1.0, 1.0),
)
OPTIMIZERS = {
    'sgd': lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    'adamw': lambda params: torch.optim.AdamW(params, lr=0.1),
    'fused': lambda params: torch.optim.AdamW(params, lr=0.1, fused=True),
    'tensor': lambda params: torch.optim.AdamW(
        params, lr=torch.tensor(0.1), fused=True
    ),
}


def make(optimizer='sgd', kind=NanGuardOptimWrapper, **keys):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    wrapper = kind(optimizer=OPTIMIZERS[optimizer](model.parameters()), **keys)
    return model, wrapper


def update(model, wrapper, norm):
    """Update with gradients of that norm."""
    with wrapper.optim_context(model):
        loss = model(torch.zeros(1, 3)).sum() * norm
    wrapper.update_params(loss)


def weights(model):
    return [param.detach().clone() for param in model.parameters()]


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_updates_are_those_of_a_smaller_learning_rate(optimizer):
    model, wrapper = make(optimizer, guard=dict(lr_backoff=BACKOFF))
    other, oracle = make(optimizer)
    for norm, factor in zip(NORMS, FACTORS):
        update(model, wrapper, norm)
        (group,) = oracle.optimizer.param_groups
        before = copy.deepcopy(group['lr'])
        group['lr'] = group['lr'] * factor
        update(other, oracle, norm)
        group['lr'] = before
        assert wrapper.guard.state.lr_factor == pytest.approx(factor)
        for left, right in zip(weights(model), weights(other)):
            torch.testing.assert_close(left, right, rtol=1e-6, atol=0)
        assert wrapper.get_lr() == oracle.get_lr()


def test_only_what_lowers_the_factor_is_told():
    model, wrapper = make(guard=dict(lr_backoff=dict(BACKOFF, floor=0.3)))
    events = []
    wrapper.guard.attach(events)
    for norm in (1.0, 50.0, 50.0, 50.0, 50.0, 1.0):
        update(model, wrapper, norm)
    events = wrapper.guard.take_events()
    assert [event.lr_factor for event in events] == [0.5, 0.3]
    assert all(event.action.value == 'step' for event in events)
    assert events[0].spike['limit'] == 10
    assert 'spike: the limit is 10' in events[0].line()
    assert 'learning rate x 0.5' in events[0].line()


def test_rejected_updates_change_nothing():
    nan = float('nan')
    model, wrapper = make(guard=dict(lr_backoff=BACKOFF))
    other, oracle = make(guard=dict(lr_backoff=BACKOFF))
    for norm in (1.0, 50.0, nan, 1.0, nan, nan, 1.0):
        update(model, wrapper, norm)
        if norm == norm:
            update(other, oracle, norm)
    assert wrapper.guard.state.lr_factor == oracle.guard.state.lr_factor
    for left, right in zip(weights(model), weights(other)):
        assert torch.equal(left, right)


def test_a_resumed_run_goes_on():
    whole, wrapper = make(guard=dict(lr_backoff=BACKOFF))
    for norm in NORMS:
        update(whole, wrapper, norm)
    model, wrapper = make(guard=dict(lr_backoff=BACKOFF))
    for norm in NORMS[:4]:
        update(model, wrapper, norm)
    saved = copy.deepcopy(wrapper.state_dict())
    resumed, wrapper = make(guard=dict(lr_backoff=BACKOFF))
    resumed.load_state_dict(model.state_dict())
    wrapper.load_state_dict(saved)
    for norm in NORMS[4:]:
        update(resumed, wrapper, norm)
    for left, right in zip(weights(whole), weights(resumed)):
        assert torch.equal(left, right)


def test_a_step_that_fails_gives_the_learning_rate_back(monkeypatch):
    model, wrapper = make(guard=dict(lr_backoff=BACKOFF))

    def fails():
        assert wrapper.get_lr()['lr'] == [0.05]
        raise MemoryError

    monkeypatch.setattr(wrapper.optimizer, 'step', fails)
    with pytest.raises(MemoryError):
        update(model, wrapper, 50.0)
    assert wrapper.get_lr()['lr'] == [0.1]


def test_under_float16_with_clipping():
    keys = dict(clip_grad=dict(max_norm=1.0))
    model, wrapper = make(
        *('fused', NanGuardAmpOptimWrapper),
        dtype='float16',
        loss_scale=8.0,
        guard=dict(lr_backoff=BACKOFF),
        **keys,
    )
    other, oracle = make('fused', **keys)
    for norm, factor in zip(NORMS[:5], FACTORS):
        update(model, wrapper, norm)
        (group,) = oracle.optimizer.param_groups
        group['lr'] = 0.1 * factor
        update(other, oracle, norm)
    for left, right in zip(weights(model), weights(other)):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)


# What each needs; all of MMEngine's that change a learning rate.
SCHEDULERS = {
    'ConstantLR': dict(factor=0.5, end=5),
    'CosineAnnealingLR': dict(T_max=15),
    'CosineRestartLR': dict(
        periods=[5, 10], restart_weights=[1, 0.5], eta_min=0
    ),
    'ExponentialLR': dict(gamma=0.9),
    'LinearLR': dict(start_factor=0.1, end=9),
    'MultiStepLR': dict(milestones=[4, 9], gamma=0.1),
    'OneCycleLR': dict(eta_max=0.3, total_steps=20),
    'PolyLR': dict(power=2.0, end=15),
    'ReduceOnPlateauLR': dict(monitor='loss', patience=2, factor=0.5),
    'StepLR': dict(step_size=4),
}


def test_all_schedulers_are_here():
    names = {
        name
        for name, kind in vars(scheduler).items()
        if inspect.isclass(kind) and name.endswith('LR')
    }
    assert names - {'_ParamScheduler'} == set(SCHEDULERS)


@pytest.mark.parametrize('name', SCHEDULERS)
def test_schedulers_compute_as_if_nothing_happened(name, monkeypatch):
    def learning_rates(**keys):
        model, wrapper = make(**keys)
        lr_scheduler = getattr(scheduler, name)(wrapper, **SCHEDULERS[name])
        used, step = [], wrapper.optimizer.step

        def recorded(*args, **kwargs):
            used.append(wrapper.get_lr()['lr'][0])
            return step(*args, **kwargs)

        wrapper.optimizer.step = recorded
        for norm in NORMS:
            update(model, wrapper, norm)
            if name.startswith('ReduceOnPlateau'):
                lr_scheduler.step(dict(loss=1.0))
            else:
                lr_scheduler.step()
        return used

    plain = learning_rates()
    assert len(set(plain)) > 1
    backed_off = learning_rates(guard=dict(lr_backoff=BACKOFF))
    assert backed_off == pytest.approx(
        [lr * factor for lr, factor in zip(plain, FACTORS)], rel=1e-12
    )


@pytest.mark.parametrize(
    ('backoff', 'words'),
    [
        (dict(factor=0.1), ['lacks above']),
        (dict(above=0), ['above', '0']),
        (dict(above=1, factor=1.0), ['factor', '1.0']),
        (dict(above=1, factor=0.1, floor=0.2), ['floor', '0.2']),
        (dict(above=1, recovery=0), ['recovery', '0']),
        (dict(above=1, recover=5), ["'recover'", "'recovery'"]),
    ],
)
def test_bad_configs(backoff, words):
    with pytest.raises(GuardConfigError) as caught:
        GuardPolicy.from_config(dict(lr_backoff=backoff))
    for word in words:
        assert word in str(caught.value)
