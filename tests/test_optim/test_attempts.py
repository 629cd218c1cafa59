"""The number of an attempt counts resumes, not round trips of the state."""

import copy

import pytest
import torch
from mmengine.optim import OptimWrapperDict
from torch import nn
from torch.optim import SGD

from mmnanguard.optim import NanGuardAmpOptimWrapper, NanGuardOptimWrapper

TYPES = [NanGuardOptimWrapper, NanGuardAmpOptimWrapper]


def build(type_=NanGuardOptimWrapper):
    model = nn.Linear(2, 1)
    return model, type_(SGD(model.parameters(), lr=0.1, momentum=0.9))


def train(model, wrapper, factor=1.0):
    with wrapper.optim_context(model):
        loss = model(torch.ones(4, 2)).square().mean() * factor
    wrapper.update_params(loss)


@pytest.mark.parametrize('type_', TYPES)
@pytest.mark.parametrize('num_updates', [0, 1])
def test_a_round_trip_changes_nothing(type_, num_updates):
    model, wrapper = build(type_)
    for _ in range(num_updates):
        train(model, wrapper)
    for _ in range(3):
        before = str(wrapper.state_dict())
        wrapper.load_state_dict(wrapper.state_dict())
        assert str(wrapper.state_dict()) == before
    assert wrapper.guard.attempt == 1
    train(model, wrapper)
    assert wrapper.guard.attempt == 1


@pytest.mark.parametrize('num_updates', [0, 1])
def test_mmengines_round_trip_of_several_wrappers(num_updates):
    """Save and load as MMEngine's test of OptimWrapperDict does."""
    pairs = [build() for _ in range(2)]
    for model, wrapper in pairs:
        for _ in range(num_updates):
            train(model, wrapper)
    left = OptimWrapperDict(first=pairs[0][1], second=pairs[1][1])
    right = OptimWrapperDict(first=build()[1], second=build()[1])
    for name, wrapper in left.items():
        wrapper.guard.run = name
    assert left.state_dict() != right.state_dict()
    right.load_state_dict(left.state_dict())
    assert str(left.state_dict()) == str(right.state_dict())


@pytest.mark.parametrize('type_', TYPES)
def test_each_resume_is_an_attempt_of_its_own(type_):
    model, wrapper = build(type_)
    train(model, wrapper)
    for attempt in (2, 3):
        saved = copy.deepcopy(wrapper.state_dict())
        model, wrapper = build(type_)
        wrapper.load_state_dict(saved)
        assert wrapper.guard.attempt == attempt
        wrapper.guard.attach(object())
        train(model, wrapper, float('nan'))
        (event,) = wrapper.guard.take_events()
        assert event.attempt == attempt


def test_an_earlier_state_of_the_same_process_is_no_resume():
    model, wrapper = build()
    train(model, wrapper)
    saved = copy.deepcopy(wrapper.state_dict())
    train(model, wrapper)
    wrapper.load_state_dict(saved)
    assert wrapper.guard.attempt == 1
    assert wrapper.guard.state.num_steps == 1


def test_a_checkpoint_of_version_0_1_is_resumed_as_the_next_attempt():
    _, wrapper = build()
    saved = wrapper.state_dict()
    saved['guard'] = dict(saved['guard'], run='0123abcd', attempt=2)
    wrapper.load_state_dict(saved)
    assert (wrapper.guard.run, wrapper.guard.attempt) == ('0123abcd', 3)
