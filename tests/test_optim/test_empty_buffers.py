"""A buffer that forward has to fill is not emptied by each rejected update."""

import pytest
import torch
from matrix import differing, everything
from torch import nn

from mmnanguard.core import TrainingHalted
from mmnanguard.optim import NanGuardOptimWrapper


class Normalized(nn.Module):
    """A loss that is divided by its running average, which begins at 0."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 1)
        self.register_buffer('average', torch.zeros(()))

    def forward(self, inputs):
        loss = self.head(inputs).square().mean()
        normalized = loss / self.average.clone()
        with torch.no_grad():
            self.update(loss)
        return normalized

    def update(self, loss):
        self.average.lerp_(loss, 0.1)


class Replaced(Normalized):
    """The average is a new tensor each time."""

    def update(self, loss):
        self.average = self.average * 0.9 + loss * 0.1


class Balanced(Normalized):
    """Each class is divided by its number of samples; three come late."""

    def __init__(self):
        super().__init__()
        self.average = torch.zeros(4)
        self.num_updates = 0

    def update(self, loss):
        self.average[self.num_updates % 4] += 1
        self.num_updates += 1

    def forward(self, inputs):
        return super().forward(inputs).mean()


class Queue(nn.Module):
    """Features in a queue, whose pointer begins at 0, and a norm layer."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 1)
        self.register_buffer('queue', torch.randn(8, 3))
        self.register_buffer('position', torch.zeros((), dtype=torch.long))

    def forward(self, inputs):
        features = self.norm(inputs)
        self.queue[int(self.position)] = features[0].detach()
        self.position += 1
        return self.head(features).square().mean()


def build(model_type, accumulative_counts=1, **guard):
    torch.manual_seed(0)
    model = model_type()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    wrapper = NanGuardOptimWrapper(
        optimizer, accumulative_counts=accumulative_counts, guard=guard
    )
    return model, wrapper


def train(model, wrapper, num_iters, factor=1.0):
    for _ in range(num_iters):
        with wrapper.optim_context(model):
            loss = model(torch.randn(4, 3))
        wrapper.update_params(loss * factor)


@pytest.mark.parametrize('model_type', [Normalized, Replaced, Balanced])
@pytest.mark.parametrize('accumulation', ['window', 'microbatch'])
def test_it_is_filled_after_a_few_rejected_updates(model_type, accumulation):
    model, wrapper = build(model_type, 2, accumulation=accumulation)
    train(model, wrapper, 40)
    state = wrapper.guard.state
    assert state.consecutive_skips == 0
    assert 3 <= state.total_skips <= 8
    assert model.average.isfinite().all()
    assert model.average.all()


def test_after_a_commit_it_is_put_back():
    model, wrapper = build(Normalized)
    train(model, wrapper, 8)
    before = everything(model, wrapper)
    train(model, wrapper, 8, factor=float('nan'))
    assert wrapper.guard.state.consecutive_skips == 8
    assert not differing(before, everything(model, wrapper))


@pytest.mark.parametrize('num_before', [0, 3])
def test_queues_pointers_and_statistics_are_put_back(num_before):
    model, wrapper = build(Queue)
    train(model, wrapper, num_before)
    before = everything(model, wrapper)
    train(model, wrapper, 5, factor=float('nan'))
    assert not differing(before, everything(model, wrapper))


def test_a_buffer_that_stays_bad_halts():
    class Spoiled(Normalized):
        def update(self, loss):
            self.average.fill_(float('inf'))

    model, wrapper = build(Spoiled, max_consecutive_skips=6)
    with pytest.raises(TrainingHalted):
        train(model, wrapper, 8)
    assert model.average == 0
