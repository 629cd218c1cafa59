"""Changes of a window are restored bit for bit; bad buffers are reported."""

import math

import pytest
import torch
from torch import nn

from mmnanguard.numerics.base.host_read import read_once
from mmnanguard.numerics.snapshot.change_tracker import (
    ChangeTracker,
    OtherOptimizers,
)
from mmnanguard.numerics.snapshot.snapshot import Snapshot

INF, NAN = math.inf, math.nan


class Holder(nn.Module):
    """A module with buffers by name and any forward that a test needs."""

    def __init__(self, **buffers):
        super().__init__()
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)


def end(snapshot):
    """Return the changes of a window, read as ``observe`` reads them."""
    comparison = snapshot.compare()
    return snapshot.learn(comparison, read_once(comparison.scalars))


def window(tracker, model, change, commit=True, beside=()):
    """Run one window; return its bad buffers."""
    snapshot = Snapshot(tracker)
    for entered in (*beside, model):
        snapshot.take(entered)
    change()
    changes = end(snapshot)
    if commit:
        snapshot.commit()
    else:
        snapshot.restore(changes)
    return changes.bad


def reject(tracker, model, change, beside=()):
    return window(tracker, model, change, commit=False, beside=beside)


def nothing():
    pass


def bits(tensor):
    return tensor.detach().flatten().clone().view(torch.uint8)


@pytest.fixture
def copied(monkeypatch):
    """Record the sources of each multi-tensor copy."""
    calls, copy = [], torch._foreach_copy_

    def foreach_copy(targets, sources):
        calls.append(list(sources))
        copy(targets, sources)

    monkeypatch.setattr(torch, '_foreach_copy_', foreach_copy)
    return calls


# Putting back


@pytest.mark.parametrize('norm', [nn.BatchNorm1d, nn.SyncBatchNorm])
@pytest.mark.parametrize('num_committed', [0, 5])
def test_statistics_of_norm_layers_are_put_back(norm, num_committed):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    if norm is nn.SyncBatchNorm:
        model[1].__class__ = norm
        model.eval()  # training needs a process group
    tracker = ChangeTracker()

    def forward():
        if model.training:
            model(torch.randn(8, 3))
        else:  # writes as the kernel does
            model[1].running_mean.data.add_(1)
            model[1].running_var.data.add_(1)

    for _ in range(num_committed):
        window(tracker, model, forward)
    before = {key: bits(value) for key, value in model.state_dict().items()}
    versions = model[1].running_mean._version
    snapshot = Snapshot(tracker)
    snapshot.take(model)
    forward()
    assert model[1].running_mean._version == versions
    assert not torch.equal(
        bits(model[1].running_mean), before['1.running_mean']
    )
    snapshot.restore(end(snapshot))
    for key, value in model.state_dict().items():
        assert torch.equal(bits(value), before[key]), key


@pytest.mark.parametrize(
    ('tensor', 'change'),
    [
        (torch.tensor(7), lambda t: t.add_(1)),
        (torch.tensor([True, False]), lambda t: t.logical_not_()),
        (torch.tensor([NAN, -INF, -0.0]), lambda t: t.zero_()),
        (torch.zeros(3, dtype=torch.float16), lambda t: t.fill_(1)),
        (torch.zeros(3, dtype=torch.float64), lambda t: t.fill_(1e-300)),
        (torch.zeros(3, dtype=torch.complex64), lambda t: t.fill_(1j)),
        (torch.arange(6).view(2, 3).t(), lambda t: t.neg_()),
    ],
)
def test_any_kind_of_buffer_is_put_back(tensor, change):
    tensor = tensor.clone()
    before = tensor.clone()
    model, tracker = Holder(buffer=tensor), ChangeTracker()
    for _ in range(5):
        reject(tracker, model, lambda: change(tensor))
        assert model.buffer is tensor
        assert torch.equal(bits(tensor), bits(before))


def test_what_is_committed_stays():
    model, tracker = Holder(buffer=torch.zeros(2)), ChangeTracker()
    window(tracker, model, lambda: model.buffer.add_(1))
    reject(tracker, model, lambda: model.buffer.add_(5))
    assert model.buffer.tolist() == [1.0, 1.0]


def test_a_change_between_windows_stays():
    """A loaded checkpoint or a user's hook makes such a change."""
    model, tracker = Holder(buffer=torch.zeros(2)), ChangeTracker()
    window(tracker, model, nothing)
    model.load_state_dict({'buffer': torch.ones(2)})
    reject(tracker, model, lambda: model.buffer.add_(5))
    assert model.buffer.tolist() == [1.0, 1.0]


def test_a_model_that_moved_between_windows():
    model, tracker = Holder(buffer=torch.zeros(2)), ChangeTracker()
    window(tracker, model, nothing)
    model.double()
    reject(tracker, model, lambda: model.buffer.add_(5))
    assert model.buffer.dtype is torch.float64
    assert model.buffer.tolist() == [0.0, 0.0]


def test_a_rebound_buffer_is_put_back_as_the_same_object():
    model = Holder(buffer=torch.zeros(2))
    tensor, tracker = model.buffer, ChangeTracker()

    def rebind():
        model.buffer.add_(1)
        model.buffer = model.buffer * 2

    reject(tracker, model, rebind)
    assert model.buffer is tensor
    assert tensor.tolist() == [0.0, 0.0]
    window(tracker, model, rebind)
    assert model.buffer.tolist() == [2.0, 2.0]
    reject(tracker, model, rebind)
    assert model.buffer.tolist() == [2.0, 2.0]


def test_a_rebound_buffer_whose_elements_share_memory():
    model = Holder(buffer=torch.zeros(1).expand(3))
    tensor, tracker = model.buffer, ChangeTracker()
    reject(tracker, model, lambda: setattr(model, 'buffer', torch.ones(3)))
    assert model.buffer is tensor


@pytest.mark.parametrize(
    'remove',
    [
        lambda model: setattr(model, 'buffer', None),
        lambda model: delattr(model, 'buffer'),
    ],
    ids=['none', 'del'],
)
def test_a_removed_buffer_is_put_back(remove):
    model, tracker = Holder(buffer=torch.ones(2)), ChangeTracker()
    tensor = model.buffer
    reject(tracker, model, lambda: remove(model))
    assert model.buffer is tensor
    # A commit leaves it removed, and training goes on.
    window(tracker, model, lambda: remove(model))
    window(tracker, model, nothing)
    assert getattr(model, 'buffer', None) is None
    reject(tracker, model, lambda: model.register_buffer('buffer', tensor))
    assert getattr(model, 'buffer', None) is None


def test_a_buffer_born_in_a_window_is_unborn():
    model, tracker = Holder(buffer=None), ChangeTracker()
    reject(tracker, model, lambda: setattr(model, 'buffer', torch.ones(2)))
    assert model.buffer is None


def test_a_buffer_born_late_is_covered_from_then_on():
    model, tracker = Holder(buffer=None), ChangeTracker()
    window(tracker, model, lambda: setattr(model, 'buffer', torch.ones(2)))
    reject(tracker, model, lambda: model.buffer.add_(5))
    assert model.buffer.tolist() == [1.0, 1.0]


def test_a_buffer_registered_in_a_window_is_covered_from_then_on():
    model, tracker = (
        nn.Sequential(Holder(), nn.BatchNorm1d(2)),
        ChangeTracker(),
    )
    inner = model[0]
    window(
        tracker, model, lambda: inner.register_buffer('late', torch.ones(2))
    )
    reject(tracker, model, lambda: inner.late.add_(5))
    assert inner.late.tolist() == [1.0, 1.0]


def test_a_buffer_registered_in_a_rejected_window_is_gone():
    model, tracker = Holder(early=torch.zeros(1)), ChangeTracker()
    for other in (model, nn.Linear(2, 2)):  # entered beside it
        reject(
            tracker,
            other,
            lambda: model.register_buffer('late', torch.ones(2)),
            beside=[model],
        )
        assert getattr(model, 'late', None) is None


@pytest.mark.parametrize(
    'grow',
    [
        lambda tensor: tensor.resize_(5).fill_(3),
        lambda tensor: setattr(tensor, 'data', torch.zeros(5)),
    ],
    ids=['resize', 'data'],
)
def test_a_buffer_that_changes_its_shape(grow):
    model, tracker = Holder(buffer=torch.ones(2)), ChangeTracker()
    for change in (grow, torch.Tensor.neg_):  # the copy is still good
        reject(tracker, model, lambda change=change: change(model.buffer))
        assert model.buffer.tolist() == [1.0, 1.0]
    window(tracker, model, lambda: grow(model.buffer))
    window(tracker, model, nothing)
    assert model.buffer.shape == (5,)


def test_the_first_copy_of_a_window_counts():
    inner = Holder(buffer=torch.zeros(2))
    model, snapshot = nn.Sequential(nn.BatchNorm1d(2), inner), Snapshot()
    for entered in (model, inner, model[0]):
        snapshot.take(entered)
        inner.buffer.add_(1)
        model[0](torch.randn(4, 2))
    snapshot.restore(end(snapshot))
    assert inner.buffer.tolist() == [0.0, 0.0]
    assert model[0].running_mean.tolist() == [0.0, 0.0]
    assert model[0].num_batches_tracked.item() == 0


def test_two_models_in_one_window():
    first, second = Holder(a=torch.zeros(1)), Holder(b=torch.zeros(1))
    snapshot = Snapshot()
    for model in (first, second):
        snapshot.take(model)
    first.a.add_(1)
    second.b.add_(1)
    snapshot.restore(end(snapshot))
    assert first.a.item() == second.b.item() == 0


def test_a_model_outside_the_window_is_left_alone():
    first, second = Holder(a=torch.zeros(1)), Holder(b=torch.zeros(1))
    tracker = ChangeTracker()
    window(tracker, first, nothing)
    window(tracker, second, nothing)

    def change():
        first.a.add_(1)
        second.b.add_(1)

    reject(tracker, second, change)
    assert (first.a.item(), second.b.item()) == (1, 0)


def test_buffers_that_share_one_tensor():
    tensor = torch.zeros(2)
    model = nn.Sequential(Holder(a=tensor), Holder(b=tensor))
    reject(ChangeTracker(), model, lambda: tensor.add_(1))
    assert tensor.tolist() == [0.0, 0.0]


@pytest.mark.parametrize('model', [nn.Sequential(), nn.Linear(2, 2)])
def test_a_model_without_buffers(model):
    tracker = ChangeTracker()
    for _ in range(5):
        assert reject(tracker, model, nothing) == []


@pytest.mark.parametrize(
    ('tensor', 'change'),
    [
        (torch.eye(3).to_sparse(), lambda t: t.mul_(2)),
        (torch.zeros(3).to(torch.float8_e4m3fn), lambda t: t.copy_(t)),
    ],
    ids=['sparse', 'float8'],
)
def test_a_kind_that_few_kernels_know_stops_no_training(tensor, change):
    model, tracker = Holder(buffer=tensor), ChangeTracker()
    window(tracker, model, nothing)
    window(tracker, model, lambda: change(model.buffer))


# Copying no more than needed


@pytest.mark.parametrize(
    'dtype', [torch.float32, torch.float16, torch.bool, torch.uint8]
)
def test_a_constant_buffer_is_copied_no_longer_and_still_covered(
    dtype, copied
):
    model, tracker = (
        Holder(buffer=torch.zeros(2, dtype=dtype)),
        ChangeTracker(),
    )
    for _ in range(6):
        window(tracker, model, nothing)
    assert len(copied) == 3  # while it is not known to be constant
    reject(tracker, model, lambda: model.buffer.fill_(3))
    assert model.buffer.tolist() == [0.0, 0.0]


def test_a_buffer_that_changed_is_copied_anew(copied):
    model, tracker = Holder(buffer=torch.zeros(2)), ChangeTracker()
    for _ in range(3):
        window(tracker, model, nothing)
    window(tracker, model, lambda: model.buffer.add_(1))
    assert len(copied) == 3
    window(tracker, model, nothing)
    window(tracker, model, nothing)
    assert len(copied) == 4


def test_a_window_copies_all_buffers_of_a_model_at_once(copied):
    model, tracker = nn.BatchNorm1d(2, affine=False), ChangeTracker()
    for index in range(6):
        snapshot = Snapshot(tracker)
        snapshot.take(model)
        snapshot.take(model)
        # One copy for the statistics and one for the int64 counter.
        assert [len(group) for group in copied] == [2, 1] * (index + 1)


def test_modules_are_walked_once():
    walks = []

    class Counting(nn.BatchNorm1d):
        def modules(self):
            walks.append(self)
            return super().modules()

    model, tracker = Counting(2), ChangeTracker()
    for _ in range(5):
        window(tracker, model, lambda: model(torch.randn(4, 2)))
    assert len(walks) == 1


# Writing behind autograd's back


def test_a_change_through_data_is_found_in_the_first_windows(copied):
    model = Holder(moving=torch.zeros(2), constant=torch.zeros(2))
    tracker = ChangeTracker()

    def change():
        model.moving.data.add_(1)

    reject(tracker, model, change)
    assert model.moving.tolist() == [0.0, 0.0]
    for _ in range(4):
        window(tracker, model, change)
    reject(tracker, model, change)
    assert model.moving.tolist() == [4.0, 4.0]
    for sources in copied[5:]:
        assert all(source is not model.constant for source in sources)


def test_the_third_window_is_still_compared():
    model, tracker = Holder(buffer=torch.zeros(2)), ChangeTracker()
    for _ in range(2):
        window(tracker, model, nothing)
    reject(tracker, model, lambda: model.buffer.data.add_(1))
    assert model.buffer.tolist() == [0.0, 0.0]


def test_one_element_that_moved_is_enough():
    model, tracker = Holder(buffer=torch.zeros(9)), ChangeTracker()
    reject(tracker, model, lambda: model.buffer.data[4].add_(1e-30))
    assert model.buffer.tolist() == [0.0] * 9


def test_later_windows_compare_nothing():
    model, tracker = Holder(buffer=torch.zeros(2)), ChangeTracker()
    for num_compared in (1, 1, 1, 0, 0):
        snapshot = Snapshot(tracker)
        snapshot.take(model)
        scalars = snapshot.compare().scalars
        assert len(scalars['moved']) == num_compared
        assert len(scalars['buffers']) == num_compared
        end(snapshot)
        snapshot.commit()


# Judging


@pytest.mark.parametrize('value', [INF, -INF, NAN])
@pytest.mark.parametrize('num_committed', [0, 1, 5])
def test_a_buffer_that_becomes_bad_is_told(value, num_committed):
    model, tracker = (
        nn.Sequential(Holder(buffer=torch.zeros(2))),
        ChangeTracker(),
    )
    buffer = model[0].buffer
    for _ in range(num_committed):
        assert window(tracker, model, lambda: buffer.add_(1)) == []
    change = lambda: buffer[1].fill_(value)  # noqa: E731
    expected = [(model[0], 'buffer')]
    assert reject(tracker, model, change) == expected
    assert torch.isfinite(buffer).all()
    assert reject(tracker, model, change) == expected


def test_bad_running_statistics_are_told():
    model, tracker = nn.BatchNorm1d(2), ChangeTracker()
    data = torch.tensor([[1.0, 1e30], [2.0, -1e30]])
    expected = [(model, 'running_var')]
    assert reject(tracker, model, lambda: model(data)) == expected
    assert reject(tracker, model, lambda: model(data[:, :1] + data[:1])) == []


@pytest.mark.parametrize('num_committed', [0, 1, 5])
def test_a_buffer_that_becomes_bad_through_data_is_told(num_committed):
    model, tracker = Holder(buffer=torch.zeros(2)), ChangeTracker()
    for _ in range(num_committed):
        window(tracker, model, lambda: model.buffer.data.add_(1))
    bad = reject(tracker, model, lambda: model.buffer.data.fill_(INF))
    assert bad == [(model, 'buffer')]


def test_a_rebound_buffer_is_judged_by_what_hangs_there():
    model, tracker = Holder(buffer=torch.zeros(2)), ChangeTracker()
    new = torch.tensor([0.0, NAN])
    bad = reject(tracker, model, lambda: setattr(model, 'buffer', new))
    assert bad == [(model, 'buffer')]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_large_is_not_bad(dtype):
    large = torch.finfo(dtype).min
    model = Holder(mask=torch.full((9,), large, dtype=dtype))
    tracker = ChangeTracker()

    for _ in range(5):
        assert window(tracker, model, lambda: model.mask.mul_(1.0)) == []
    bad = window(tracker, model, lambda: model.mask[3:4].fill_(NAN))

    assert bad == [(model, 'mask')]


@pytest.mark.parametrize('value', [-INF, NAN])
def test_a_mask_that_was_not_finite_before_is_not_judged(value):
    model = Holder(mask=torch.tensor([0.0, value]), other=torch.zeros(1))
    tracker = ChangeTracker()

    def change():
        model.mask.copy_(torch.tensor([value, 0.0]))
        model.other.add_(1)

    for _ in range(5):
        assert window(tracker, model, change) == []
    bad = window(tracker, model, lambda: (change(), model.other.fill_(INF)))
    assert bad == [(model, 'other')]


def test_a_buffer_that_is_born_bad_is_told():
    model, tracker = Holder(buffer=None), ChangeTracker()
    new = torch.tensor([0.0, NAN])
    bad = reject(tracker, model, lambda: setattr(model, 'buffer', new))
    assert bad == [(model, 'buffer')]


def test_a_mask_of_inf_that_is_born_in_a_window_is_not_judged():
    """A judged mask would be rejected anew until the run halts."""
    model, tracker = Holder(mask=None), ChangeTracker()
    mask = torch.tensor([0.0, -INF])
    assert window(tracker, model, lambda: setattr(model, 'mask', mask)) == []


@pytest.mark.parametrize(
    'first',
    [torch.tensor(0), torch.zeros(0), torch.zeros(2).to_sparse()],
    ids=['int', 'empty', 'sparse'],
)
def test_a_buffer_may_become_another_kind(first):
    model, tracker = Holder(buffer=first), ChangeTracker()

    def rebind(value):
        model.buffer = torch.tensor([value])

    assert reject(tracker, model, lambda: rebind(0.5)) == []
    assert model.buffer is first
    assert window(tracker, model, lambda: rebind(0.5)) == []
    bad = reject(tracker, model, lambda: rebind(NAN))
    assert bad == [(model, 'buffer')]
    back = lambda: setattr(model, 'buffer', first)  # noqa: E731
    assert window(tracker, model, back) == []
    assert model.buffer is first


def test_each_buffer_is_judged_by_its_own_past():
    """The past of some buffers is known; other buffers come later."""
    first = Holder(early=torch.zeros(1))
    second = Holder(mask=torch.tensor([INF]), late=torch.zeros(1))
    tracker = ChangeTracker()
    window(tracker, first, lambda: first.early.add_(1))

    def change():
        first.early.add_(1)
        second.mask.neg_()
        second.late.fill_(NAN)

    bad = reject(tracker, second, change, beside=[first])
    assert bad == [(second, 'late')]


@pytest.mark.parametrize(
    'tensor',
    [torch.tensor([2**62]), torch.tensor([True]), torch.zeros(0)],
    ids=['int', 'bool', 'empty'],
)
def test_what_cannot_be_bad_is_not_judged(tensor):
    model, tracker = Holder(buffer=tensor), ChangeTracker()
    for _ in range(2):
        snapshot = Snapshot(tracker)
        snapshot.take(model)
        model.buffer.add_(tensor)
        scalars = snapshot.compare().scalars
        assert len(scalars['buffers']) == len(scalars['baselines']) == 0
        assert end(snapshot).bad == []
        snapshot.commit()


def test_nothing_syncs(monkeypatch):
    model, tracker = nn.BatchNorm1d(2), ChangeTracker()
    model.register_buffer('mask', torch.zeros(2))
    for name in ('item', 'tolist', '__float__', '__int__', '__bool__'):
        monkeypatch.setattr(torch.Tensor, name, None)
    for _ in range(5):
        snapshot = Snapshot(tracker)
        snapshot.take(model)
        model(torch.randn(4, 2))
        comparison = snapshot.compare()
        read = {
            name: [0.0] * len(group)
            for name, group in comparison.scalars.items()
        }
        snapshot.restore(snapshot.learn(comparison, read))


# Modules that come and go


def add(model):
    model.late = nn.BatchNorm1d(2)


def replace(model):
    model.norm = nn.BatchNorm1d(2)


def nest(model):
    model.norm = nn.Sequential(model.norm, nn.BatchNorm1d(2))


@pytest.mark.parametrize('change', [add, replace, nest])
def test_a_module_that_comes_late_is_covered(change):
    model, tracker = nn.Module(), ChangeTracker()
    model.norm = nn.BatchNorm1d(2)
    for _ in range(5):
        window(tracker, model, nothing)
    change(model)

    def forward():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm1d):
                norm(torch.randn(4, 2))

    window(tracker, model, forward)
    before = {key: bits(value) for key, value in model.state_dict().items()}
    reject(tracker, model, forward)
    for key, value in model.state_dict().items():
        assert torch.equal(bits(value), before[key]), key
    kept = {backup.owner for backup in tracker.find(model).backups}
    assert kept <= set(model.modules())


@pytest.mark.parametrize('change', [add, replace, nest])
def test_a_module_that_came_in_a_rejected_window_is_gone(change):
    model, tracker = nn.Module(), ChangeTracker()
    model.norm = norm = nn.BatchNorm1d(2)
    reject(tracker, model, lambda: change(model))
    assert list(model.named_children()) == [('norm', norm)]


# What went bad before, and what only looks so


def test_what_went_bad_between_windows_is_lost_not_bad():
    norm, tracker = nn.BatchNorm1d(2), ChangeTracker()
    window(tracker, norm, lambda: norm(torch.randn(4, 2)))
    norm.running_mean.data[0] = NAN
    snapshot = Snapshot(tracker)
    snapshot.take(norm)
    norm(torch.randn(4, 2))
    changes = end(snapshot)
    assert changes.bad == []
    assert changes.lost == [(norm, 'running_mean')]


@pytest.mark.parametrize('num_windows', [1, 5])
def test_a_mask_that_is_made_anew_is_not_bad(num_windows):
    model, tracker = Holder(mask=torch.zeros(2, 2)), ChangeTracker()
    for _ in range(num_windows):
        window(tracker, model, nothing)

    def grow():
        model.mask = torch.full((3, 3), -INF).triu(1)

    assert window(tracker, model, grow) == []
    assert window(tracker, model, nothing) == []


def test_a_permutation_is_a_change():
    model, tracker = Holder(queue=torch.arange(4096.0)), ChangeTracker()
    for size in (1, 1024):
        reject(
            tracker,
            model,
            lambda: model.queue.data.copy_(model.queue.roll(size)),  # noqa: B023
        )
    assert model.queue.tolist() == list(range(4096))


def test_shared_buffers_stay_where_another_has_committed():
    mine, whole, num_steps = Holder(a=torch.zeros(1)), Holder(), []
    whole.mine, whole.other = mine, Holder(b=torch.zeros(1), c=torch.zeros(1))
    others = OtherOptimizers(set, whole, lambda: len(num_steps))
    snapshot = Snapshot(ChangeTracker(others))
    snapshot.take(mine)
    mine.a += 1
    whole.other.b += 1
    whole.other.c += NAN
    num_steps.append(1)
    snapshot.restore(end(snapshot))
    assert (mine.a.item(), whole.other.b.item()) == (0.0, 1.0)
    assert whole.other.c.item() == 0.0  # of no use to anyone


def test_shared_buffers_are_restored_where_no_other_has_committed():
    mine, whole = Holder(a=torch.zeros(1)), Holder()
    whole.mine, whole.other = mine, Holder(b=torch.zeros(1))
    snapshot = Snapshot(ChangeTracker(OtherOptimizers(set, whole)))
    snapshot.take(mine)
    whole.other.b += 1
    snapshot.restore(end(snapshot))
    assert whole.other.b.item() == 0.0


def test_comparing_changes_nothing():
    """A second comparison of a window gives the same result."""
    model = nn.BatchNorm1d(2)
    snapshot = Snapshot()
    snapshot.take(model)
    model(torch.randn(4, 2))
    model.running_var.data[0] = NAN
    first = read_once(snapshot.compare().scalars)
    second = read_once(snapshot.compare().scalars)
    assert str(first) == str(second)  # NaN is not equal to itself
    assert end(snapshot).bad == end(snapshot).bad == [(model, 'running_var')]
