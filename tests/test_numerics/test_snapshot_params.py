"""Parameters are restored if the forward pass changes them, only then."""

import copy
import math
from functools import partial

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mmnanguard.numerics.base.host_read import read_once
from mmnanguard.numerics.snapshot.change_tracker import (
    ChangeTracker,
    OtherOptimizers,
)
from mmnanguard.numerics.snapshot.snapshot import Snapshot


class Encoder(nn.Module):
    """A model with a frozen parameter and a trained one."""

    def __init__(self, numel=3):
        super().__init__()
        self.key = nn.Parameter(torch.arange(1.0, numel + 1), False)
        self.query = nn.Parameter(torch.ones(numel))


def end(snapshot):
    """Return the changes of a window, read as ``observe`` reads them."""
    comparison = snapshot.compare()
    return snapshot.learn(comparison, read_once(comparison.scalars))


def window(tracker, model, change, commit=True, step=None):
    """Run one window; return its bad tensors."""
    snapshot = Snapshot(tracker)
    snapshot.take(model)
    change()
    changes = end(snapshot)
    if not commit:
        snapshot.restore(changes)
        return changes.bad
    if step:
        step()
    snapshot.commit()
    return changes.bad


def nothing():
    pass


def in_place(param):
    with torch.no_grad():
        param.mul_(2)


def through_data(param):
    param.data = param.data * 2


def behind_autograd(param):
    param.data.mul_(2)


CHANGES = [in_place, through_data, behind_autograd]


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('name', ['key', 'query'])
@pytest.mark.parametrize('num_committed', [0, 1, 3, 6])
def test_a_parameter_that_forward_changes(change, name, num_committed):
    model, tracker = Encoder(), ChangeTracker()
    param = getattr(model, name)
    for _ in range(num_committed):
        window(tracker, model, lambda: change(param))
    before = param.detach().clone()
    window(tracker, model, lambda: change(param), commit=False)
    assert torch.equal(param, before)
    assert getattr(model, name) is param


def test_a_rebound_parameter_is_put_back_as_the_same_object():
    model, tracker = Encoder(), ChangeTracker()
    key = model.key

    def rebind():
        model.key = nn.Parameter(torch.zeros(3), False)

    window(tracker, model, rebind, commit=False)
    assert model.key is key


def test_one_bit_of_a_large_parameter():
    model, tracker = Encoder(10**5), ChangeTracker()

    def change():
        model.key.data[777] += 2.0**-14  # the last bit of 778

    before = model.key.detach().clone()
    window(tracker, model, change, commit=False)
    assert torch.equal(model.key, before)


@pytest.mark.parametrize(
    'dtype', [torch.float64, torch.bfloat16, torch.complex64, torch.int8]
)
def test_any_dtype(dtype):
    model, tracker = nn.Module(), ChangeTracker()
    model.key = nn.Parameter(torch.ones(3).to(dtype), requires_grad=False)
    window(tracker, model, lambda: behind_autograd(model.key), commit=False)
    assert torch.equal(model.key, torch.ones(3).to(dtype))


def test_what_the_optimizer_does_is_no_change_by_forward():
    model, tracker = Encoder(), ChangeTracker()

    def step():
        in_place(model.query)

    for _ in range(6):
        window(tracker, model, nothing, step=step)
    assert model.query.tolist() == [64.0] * 3
    assert [b.key for b in tracker.find(model).backups if b.is_changing] == []


def test_the_others_are_not_copied_for_ever():
    model, tracker = Encoder(), ChangeTracker()
    for _ in range(4):
        window(tracker, model, lambda: behind_autograd(model.key))
    assert [
        b.key for b in tracker.find(model).backups if b.copy is not None
    ] == ['key']
    snapshot = Snapshot(tracker)
    snapshot.take(model)
    assert snapshot.compare().scalars['moved'] == []


def test_another_optimizers_parameters_are_left_alone():
    model = Encoder()
    theirs = nn.Parameter(torch.ones(2))
    model.theirs = theirs
    tracker = ChangeTracker(OtherOptimizers(lambda: {id(theirs)}))
    for change in (in_place, through_data):
        window(tracker, model, lambda: change(theirs), commit=False)  # noqa: B023
    assert theirs.tolist() == [4.0, 4.0]


def test_a_late_change_is_said_once_and_covered_from_then_on():
    model, tracker = Encoder(), ChangeTracker()
    for _ in range(5):
        window(tracker, model, nothing)
    with pytest.warns(RuntimeWarning, match="'key' of a Encoder"):
        window(tracker, model, lambda: in_place(model.key), commit=False)
    before = model.key.detach().clone()
    window(tracker, model, lambda: in_place(model.key), commit=False)
    assert torch.equal(model.key, before)


@pytest.mark.parametrize('num_committed', [0, 2, 5])
def test_one_that_becomes_bad_is_told(num_committed):
    model, tracker = Encoder(), ChangeTracker()
    for _ in range(num_committed):
        window(tracker, model, lambda: in_place(model.key))
    bad = window(
        tracker, model, lambda: model.key.data.fill_(math.inf), commit=False
    )
    assert bad == [(model, 'key')]
    assert torch.isfinite(model.key).all()


def test_bad_weights_that_nobody_changed_are_not_forwards_fault():
    model, tracker = Encoder(), ChangeTracker()
    model.query.data[0] = math.nan
    assert window(tracker, model, nothing) == []


def test_a_window_that_was_never_judged_does_not_count():
    model, tracker = Encoder(), ChangeTracker()
    for _ in range(5):
        Snapshot(tracker).take(model)
    window(tracker, model, lambda: behind_autograd(model.key), commit=False)
    assert model.key.tolist() == [1.0, 2.0, 3.0]


def test_putting_statistics_back_breaks_no_graph_that_is_still_wanted():
    norm, snapshot = nn.BatchNorm1d(3), Snapshot()
    inputs = torch.randn(4, 3, requires_grad=True)
    snapshot.take(norm)
    loss = norm(inputs).square().sum()
    loss.backward(retain_graph=True)
    snapshot.restore(end(snapshot))
    assert norm.running_mean.tolist() == [0.0] * 3
    loss.backward()


def test_a_late_look_at_what_is_changed_behind_autograd():
    """A copy of an earlier window would undo later commits.

    An optimizer that writes through ``data`` does not count its changes.
    """
    model, tracker = Encoder(), ChangeTracker()
    window(tracker, model, nothing, step=lambda: through_data(model.query))
    window(tracker, model, lambda: behind_autograd(model.query), commit=False)
    assert model.query.tolist() == [2.0] * 3


# Momentum encoders, which may stand still while probing goes on


def assert_put_back(tracker, model, param):
    before = param.detach().clone()
    window(tracker, model, lambda: behind_autograd(param), commit=False)
    assert torch.equal(param, before)


def test_rejected_windows_teach_nothing():
    model, tracker = Encoder(), ChangeTracker()
    for _ in range(6):
        window(tracker, model, nothing, commit=False)
    assert_put_back(tracker, model, model.key)


def momentum_encoder(make):
    model = nn.Module()
    model.online = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    model.frozen = nn.Linear(2, 2).requires_grad_(False)
    model.target = make(model.online).requires_grad_(False)
    return model


@pytest.mark.parametrize(
    'make', [AveragedModel, partial(ExponentialMovingAverage, momentum=0.1)]
)
def test_averages_are_known_by_their_type(make):
    model, tracker = momentum_encoder(make), ChangeTracker()
    for _ in range(6):
        window(tracker, model, nothing)
    assert_put_back(tracker, model, model.target.module[1].weight)


def test_what_hangs_together_changes_together():
    model, tracker = momentum_encoder(copy.deepcopy), ChangeTracker()
    for _ in range(6):
        window(tracker, model, lambda: behind_autograd(model.target[0].bias))
    assert_put_back(tracker, model, model.target[1].weight)
    changing = {b.owner for b in tracker.find(model).backups if b.is_changing}
    assert changing == {model.target[0], model.target[1]}


def test_an_average_that_is_bound_anew_stays_known():
    model, tracker = Encoder(), ChangeTracker()
    window(tracker, model, lambda: behind_autograd(model.key))
    model.key = nn.Parameter(torch.ones(3), requires_grad=False)
    for _ in range(6):
        window(tracker, model, nothing)
    assert_put_back(tracker, model, model.key)
