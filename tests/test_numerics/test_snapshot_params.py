"""Parameters that a forward pass changes, and those that it does not."""

import copy
import math
from functools import partial

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mmnanguard.numerics.base.host_read import read_once
from mmnanguard.numerics.snapshot.snapshot import Snapshot


class Encoder(nn.Module):
    """A frozen parameter and a trained one."""

    def __init__(self, numel=3):
        super().__init__()
        self.key = nn.Parameter(torch.arange(1.0, numel + 1), False)
        self.query = nn.Parameter(torch.ones(numel))


def window(snapshot, model, change, commit=True, step=None):
    """One window; gives its bad tensors."""
    snapshot.take(model)
    change()
    bad = snapshot.find_bad(read_once(snapshot.facts()))
    if not commit:
        snapshot.restore()
    elif step:
        step()
    snapshot.close()
    return bad


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
    model, snapshot = Encoder(), Snapshot()
    param = getattr(model, name)
    for _ in range(num_committed):
        window(snapshot, model, lambda: change(param))
    before = param.detach().clone()
    window(snapshot, model, lambda: change(param), commit=False)
    assert torch.equal(param, before)
    assert getattr(model, name) is param


def test_a_rebound_parameter_is_put_back_as_the_same_object():
    model, snapshot = Encoder(), Snapshot()
    key = model.key

    def rebind():
        model.key = nn.Parameter(torch.zeros(3), False)

    window(snapshot, model, rebind, commit=False)
    assert model.key is key


def test_one_bit_of_a_large_parameter():
    model, snapshot = Encoder(10**5), Snapshot()

    def change():
        model.key.data[777] += 2.0**-14  # the last bit of 778

    before = model.key.detach().clone()
    window(snapshot, model, change, commit=False)
    assert torch.equal(model.key, before)


@pytest.mark.parametrize(
    'dtype', [torch.float64, torch.bfloat16, torch.complex64, torch.int8]
)
def test_any_dtype(dtype):
    model, snapshot = nn.Module(), Snapshot()
    model.key = nn.Parameter(torch.ones(3).to(dtype), requires_grad=False)
    window(snapshot, model, lambda: behind_autograd(model.key), commit=False)
    assert torch.equal(model.key, torch.ones(3).to(dtype))


def test_what_the_optimizer_does_is_no_change_by_forward():
    model, snapshot = Encoder(), Snapshot()

    def step():
        in_place(model.query)

    for _ in range(6):
        window(snapshot, model, nothing, step=step)
    assert model.query.tolist() == [64.0] * 3
    assert [
        slot.key for slot in snapshot._slots[model] if slot.is_changing
    ] == []


def test_the_others_are_not_copied_for_ever():
    model, snapshot = Encoder(), Snapshot()
    for _ in range(4):
        window(snapshot, model, lambda: behind_autograd(model.key))
    assert [
        slot.key for slot in snapshot._slots[model] if slot.copy is not None
    ] == ['key']
    snapshot.take(model)
    assert snapshot.facts()['moved'] == []


def test_another_optimizers_parameters_are_left_alone():
    model = Encoder()
    theirs = nn.Parameter(torch.ones(2))
    model.theirs = theirs
    snapshot = Snapshot(lambda: {id(theirs)})
    for change in (in_place, through_data):
        window(snapshot, model, lambda: change(theirs), commit=False)  # noqa: B023
    assert theirs.tolist() == [4.0, 4.0]


def test_a_late_change_is_said_once_and_covered_from_then_on():
    model, snapshot = Encoder(), Snapshot()
    for _ in range(5):
        window(snapshot, model, nothing)
    with pytest.warns(RuntimeWarning, match="'key' of a Encoder"):
        window(snapshot, model, lambda: in_place(model.key), commit=False)
    before = model.key.detach().clone()
    window(snapshot, model, lambda: in_place(model.key), commit=False)
    assert torch.equal(model.key, before)


@pytest.mark.parametrize('num_committed', [0, 2, 5])
def test_one_that_becomes_bad_is_told(num_committed):
    model, snapshot = Encoder(), Snapshot()
    for _ in range(num_committed):
        window(snapshot, model, lambda: in_place(model.key))
    bad = window(
        snapshot, model, lambda: model.key.data.fill_(math.inf), commit=False
    )
    assert bad == [(model, 'key')]
    assert torch.isfinite(model.key).all()


def test_bad_weights_that_nobody_changed_are_not_forwards_fault():
    model, snapshot = Encoder(), Snapshot()
    model.query.data[0] = math.nan
    assert window(snapshot, model, nothing) == []


def test_a_window_that_was_never_judged_does_not_count():
    model, snapshot = Encoder(), Snapshot()
    for _ in range(5):
        snapshot.take(model)
        snapshot.close()
    window(snapshot, model, lambda: behind_autograd(model.key), commit=False)
    assert model.key.tolist() == [1.0, 2.0, 3.0]


def test_putting_statistics_back_breaks_no_graph_that_is_still_wanted():
    norm, snapshot = nn.BatchNorm1d(3), Snapshot()
    inputs = torch.randn(4, 3, requires_grad=True)
    snapshot.take(norm)
    loss = norm(inputs).square().sum()
    loss.backward(retain_graph=True)
    snapshot.find_bad(read_once(snapshot.facts()))
    snapshot.restore()
    assert norm.running_mean.tolist() == [0.0] * 3
    loss.backward()


def test_a_late_look_at_what_is_changed_behind_autograd():
    """An optimizer that writes through ``data`` counts nothing, so that a
    copy of an earlier window would undo what it committed since.
    """
    model, snapshot = Encoder(), Snapshot()
    window(snapshot, model, nothing, step=lambda: through_data(model.query))
    window(snapshot, model, lambda: behind_autograd(model.query), commit=False)
    assert model.query.tolist() == [2.0] * 3


# Momentum encoders, which may stand still while probing goes on


def assert_put_back(snapshot, model, param):
    before = param.detach().clone()
    window(snapshot, model, lambda: behind_autograd(param), commit=False)
    assert torch.equal(param, before)


def test_rejected_windows_teach_nothing():
    model, snapshot = Encoder(), Snapshot()
    for _ in range(6):
        window(snapshot, model, nothing, commit=False)
    assert_put_back(snapshot, model, model.key)


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
    model, snapshot = momentum_encoder(make), Snapshot()
    for _ in range(6):
        window(snapshot, model, nothing)
    assert_put_back(snapshot, model, model.target.module[1].weight)


def test_what_hangs_together_changes_together():
    model, snapshot = momentum_encoder(copy.deepcopy), Snapshot()
    for _ in range(6):
        window(snapshot, model, lambda: behind_autograd(model.target[0].bias))
    assert_put_back(snapshot, model, model.target[1].weight)
    changing = {
        slot.owner for slot in snapshot._slots[model] if slot.is_changing
    }
    assert changing == {model.target[0], model.target[1]}


def test_an_average_that_is_bound_anew_stays_known():
    model, snapshot = Encoder(), Snapshot()
    window(snapshot, model, lambda: behind_autograd(model.key))
    model.key = nn.Parameter(torch.ones(3), requires_grad=False)
    for _ in range(6):
        window(snapshot, model, nothing)
    assert_put_back(snapshot, model, model.key)
