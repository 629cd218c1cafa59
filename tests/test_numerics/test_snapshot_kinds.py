"""Windows of models whose tensors are of an unusual kind."""

import gc
import weakref

import pytest
import torch
from odd_tensors import Copyable, Opaque, values
from test_snapshot import Holder, nothing, reject, window
from torch import nn
from torch.ao.quantization import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    MovingAverageMinMaxObserver,
    disable_observer,
    enable_observer,
)

from mmnanguard.numerics.snapshot.change_tracker import (
    NUM_PROBED_WINDOWS,
    ChangeTracker,
    OtherOptimizers,
)

NAN = float('nan')
pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.mark.parametrize('num_committed', [0, NUM_PROBED_WINDOWS + 1])
@pytest.mark.parametrize(
    'change',
    [
        lambda tensor: tensor.mul_(2),
        lambda tensor: tensor._values().mul_(2),
        lambda tensor: tensor.copy_(torch.eye(3)[:2].to_sparse()),
    ],
    ids=['all', 'values', 'other places'],
)
def test_a_sparse_buffer_is_put_back(change, num_committed):
    model, tracker = Holder(table=values().to_sparse()), ChangeTracker()
    for _ in range(num_committed):
        window(tracker, model, nothing)
    reject(tracker, model, lambda: change(model.table))
    assert torch.equal(model.table.to_dense(), values())


@pytest.mark.parametrize(
    'make',
    [
        lambda tensor: tensor.to(torch.complex64),
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to(torch.float8_e4m3fn),
    ],
    ids=['complex', 'sparse', 'float8'],
)
def test_a_buffer_that_becomes_nan_is_bad(make):
    model, tracker = Holder(table=make(values())), ChangeTracker()
    bad = values()
    bad[0, 0] = NAN
    changed = reject(tracker, model, lambda: model.table.copy_(make(bad)))
    assert changed == [(model, 'table')]


def test_an_expanded_buffer_whose_memory_changes_is_put_back():
    memory = torch.ones(1, 3)
    model, tracker = Holder(row=memory.expand(2, 3)), ChangeTracker()
    reject(tracker, model, lambda: memory.fill_(2.0))
    assert torch.equal(model.row, torch.ones(2, 3))


@pytest.mark.parametrize('kind', [FakeQuantize, FusedMovingAvgObsFakeQuantize])
def test_an_observer_that_is_enabled_late_is_put_back(kind):
    layer = kind(MovingAverageMinMaxObserver)
    tracker = ChangeTracker()
    layer.apply(disable_observer)
    inputs = torch.randn(8)
    layer(inputs)
    for _ in range(NUM_PROBED_WINDOWS + 1):
        window(tracker, layer, lambda: layer(inputs))
    layer.apply(enable_observer)
    before = {key: buffer.clone() for key, buffer in layer.named_buffers()}
    reject(tracker, layer, lambda: layer(100 * inputs))
    for key, buffer in layer.named_buffers():
        assert torch.equal(buffer, before[key]), key


def test_parts_that_forward_makes_anew_are_not_kept_alive():
    model, tracker = nn.Module(), ChangeTracker()
    parts = weakref.WeakSet()

    def forward():
        model.part = nn.BatchNorm1d(3)
        parts.add(model.part)

    for index in range(10):
        window(tracker, model, forward, commit=index % 3 > 0)
    gc.collect()
    # One is in the model, and one is known of the window before.
    assert len(parts) <= 2


def test_what_is_left_alone_is_named_once():
    reports = []
    others = OtherOptimizers(
        report_left_alone=lambda *names: reports.append(names)
    )
    tracker = ChangeTracker(others)
    model = Holder(opaque=Opaque(values()), copyable=Copyable(values()))
    for _ in range(3):
        reject(tracker, model, nothing)
    assert reports == [(['opaque (Opaque)'], ['copyable (Copyable)'])]


def test_a_lazy_parameter_is_covered_once_it_has_values():
    model, tracker = nn.LazyLinear(2), ChangeTracker()
    window(tracker, model, lambda: model(torch.ones(1, 3)))
    before = model.weight.clone()
    with torch.no_grad():
        reject(tracker, model, lambda: model.weight.mul_(2))
    assert torch.equal(model.weight, before)
