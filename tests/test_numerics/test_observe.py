"""An observation reads tensors in one host read and gives plain numbers."""

import math

import pytest
import torch
from torch import nn
from toys import total_norm

from mmnanguard.core import (
    Action,
    Cause,
    GuardPolicy,
    GuardState,
    NormClip,
    ScaleReading,
    decide,
)
from mmnanguard.core.rules.observation import NORM_LIMIT
from mmnanguard.numerics.snapshot.change_tracker import ChangeTracker
from mmnanguard.numerics.snapshot.snapshot import Snapshot
from mmnanguard.numerics.update.observe import diagnose, observe

INF, NAN = math.inf, math.nan
ONE = torch.tensor(1.0)
NO_SCALER = ScaleReading()


def look(grads=(), losses=(ONE,), facts=None, **keys):
    """Return an observation of these gradients, losses and flags."""
    return observe(
        list(grads),
        list(losses),
        facts or {},
        keys.pop('snapshot', Snapshot()),
        keys.pop('scale', NO_SCALER),
        **keys,
    )


def closely(grads, weights=(), **keys):
    seen, reading = look(grads, **keys)
    return diagnose(seen, reading, grads, weights)


def test_a_clean_update():
    scale = ScaleReading(4.0, 1.0, True, False)
    grads = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    seen, reading = look(grads, scale=scale)
    assert seen.is_clean
    assert seen.loss == 1.0
    assert seen.grad_norm == 1.25  # 5 unscaled
    assert seen.clip_norm is None
    assert (seen.num_bad_params, seen.num_params) == (0, 2)
    assert seen.scale is scale
    assert reading.norms == [3.0, 4.0]  # still scaled


def test_gradients_are_read_and_not_changed():
    grads = [torch.tensor([3.0, NAN]), torch.tensor([[4.0]])]
    versions = [grad._version for grad in grads]
    look(grads, scale=ScaleReading(4.0), norm_type=1.0)
    assert [grad._version for grad in grads] == versions


def test_no_gradients_at_all():
    seen, reading = look()
    assert seen.is_clean
    assert (seen.grad_norm, seen.num_params) == (0.0, 0)
    assert look(norm_type=3.0)[0].clip_norm == 0.0
    assert diagnose(seen, reading, [], []) == seen


@pytest.mark.parametrize(
    'dtypes',
    [
        (torch.float32, torch.float32),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float16),
    ],
)
@pytest.mark.parametrize('norm_type', [2.0, 1.0, 3.0, 0.5, INF])
def test_norms_are_pytorchs(dtypes, norm_type):
    grads = [torch.randn(50).to(dtype) for dtype in dtypes]
    seen, _ = look(grads, scale=ScaleReading(8.0), norm_type=norm_type)
    exact = [grad.double() / 8 for grad in grads]
    expected = total_norm(exact, norm_type).item()
    if norm_type == 2.0:
        assert seen.clip_norm is None
        assert seen.grad_norm == pytest.approx(expected, rel=1e-6)
    else:
        assert seen.clip_norm == pytest.approx(expected, rel=1e-6)
        expected = total_norm(exact).item()
        assert seen.grad_norm == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('norm_type', [1.0, 2.0, 3.0, INF])
def test_clipping_by_it_is_pytorchs(norm_type):
    params = [nn.Parameter(torch.zeros(5)) for _ in range(3)]
    for param in params:
        param.grad = torch.randn(5)
    seen, _ = look([param.grad for param in params], norm_type=norm_type)
    clip = NormClip(0.5, norm_type)
    coef = decide(seen, GuardState(), GuardPolicy(), clip).clip_coef
    expected = [param.grad * coef for param in params]
    torch.nn.utils.clip_grad_norm_(params, 0.5, norm_type)
    for param, grad in zip(params, expected):
        torch.testing.assert_close(grad, param.grad, rtol=1e-6, atol=0)


def test_moderate_half_precision_gradients_have_a_norm():
    """The norm is 1e5, while the largest float16 is 65504."""
    seen, _ = look([torch.full((10000,), 1000.0, dtype=torch.float16)])
    assert seen.grad_norm == pytest.approx(1e5, rel=1e-5)


def test_high_powers_do_not_overflow_on_the_host():
    grads = [torch.full((1,), 34.5) for _ in range(8)]
    seen, _ = look(grads, norm_type=200.0)  # 34.5**200 is 4e307
    assert seen.clip_norm == pytest.approx(34.5 * 8 ** (1 / 200), rel=1e-5)
    assert look([torch.zeros(3)], norm_type=7.0)[0].clip_norm == 0.0


@pytest.mark.parametrize('norm_type', [1.5, 3.0, 5.0])
def test_powers_beyond_float32_have_a_norm(norm_type):
    seen, _ = look([torch.full((3,), 1e18)], norm_type=norm_type)
    expected = 1e18 * 3 ** (1 / norm_type)
    assert seen.clip_norm == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('norm_type', [1.0, 3.0, 20.0, INF])
@pytest.mark.parametrize('value', [1e13, 1e15, 1e18])
def test_no_update_is_committed_with_a_coefficient_of_zero(norm_type, value):
    """No update is committed with a norm of inf, which MMEngine would log."""
    grads = [torch.full((3,), value)]
    seen, _ = look(grads, norm_type=norm_type)
    verdict = decide(
        seen, GuardState(), GuardPolicy(), NormClip(1.0, norm_type)
    )
    if verdict.action is Action.STEP:
        assert math.isfinite(seen.clip_norm)
        assert verdict.clip_coef > 0


@pytest.mark.parametrize(
    ('norm_type', 'num_reads'), [(2.0, 1), (1.0, 2), (INF, 2)]
)
def test_gradients_are_read_once_for_the_usual_norm(
    norm_type, num_reads, monkeypatch
):
    reads, norm = [], torch._foreach_norm

    def foreach_norm(tensors, norm_type):
        reads.append(norm_type)
        return norm(tensors, norm_type)

    monkeypatch.setattr(torch, '_foreach_norm', foreach_norm)
    look([ONE, ONE], norm_type=norm_type)
    assert reads == [2.0, norm_type][:num_reads]


# Bad gradients


@pytest.mark.parametrize('value', [NAN, INF, -INF])
@pytest.mark.parametrize(
    'dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64]
)
def test_one_bad_element_is_seen(value, dtype):
    grads = [torch.ones(3), torch.ones(999).to(dtype), torch.ones(2)]
    grads[1][500] = value
    seen, _ = look(grads, scale=ScaleReading(2.0))
    assert not seen.grad_is_finite
    assert not seen.is_clean
    assert not math.isfinite(seen.grad_norm)
    assert (seen.num_bad_params, seen.num_params) == (1, 3)
    assert not closely(grads).grad_is_finite


def test_nan_wins_over_inf():
    for bad in ([INF, NAN], [NAN, INF]):
        seen, _ = look([torch.tensor([value]) for value in bad])
        assert math.isnan(seen.grad_norm)
        assert seen.num_bad_params == 2


@pytest.mark.parametrize('norm_type', [1.0, 3.0, INF])
def test_inf_stays_inf_in_any_norm(norm_type):
    grads = [torch.tensor([-INF]), ONE[None], torch.tensor([INF])]
    seen, _ = look(grads, norm_type=norm_type)
    assert seen.grad_norm == seen.clip_norm == INF


@pytest.mark.parametrize(
    ('grad', 'scale', 'is_clean'),
    [
        # The square would not be a float32.
        ([1e30], 1.0, False),
        ([NORM_LIMIT], 1.0, True),
        ([NORM_LIMIT * 1.001], 1.0, False),
        ([NORM_LIMIT / 10] * 4, 1.0, True),
        # It is the unscaled one that counts.
        ([NORM_LIMIT], 0.5, False),
        ([NORM_LIMIT], 2.0, True),
    ],
)
def test_a_norm_must_have_a_square(grad, scale, is_clean):
    grads = [torch.tensor(grad, dtype=torch.float64).float()]
    seen, _ = look(grads, scale=ScaleReading(scale))
    assert seen.norm_is_bounded is is_clean
    assert seen.is_clean is is_clean


@pytest.mark.parametrize('grad', [[1e30], [3e19] * 10, [3e38] * 2])
def test_a_huge_norm_over_finite_elements_is_told_from_inf(grad):
    grads = [ONE[None], torch.tensor(grad)]
    seen = closely(grads, [ONE])
    assert seen.grad_is_finite
    assert not seen.norm_is_bounded
    assert not seen.is_clean
    assert (seen.num_bad_params, seen.num_params) == (1, 2)
    verdict = decide(seen, GuardState(), GuardPolicy())
    assert verdict.cause is Cause.NORM_OVERFLOW


def test_a_bad_element_beside_a_huge_norm():
    grads = [torch.full((10,), 3e38), torch.tensor([NAN])]
    seen = closely(grads)
    assert not seen.grad_is_finite
    assert seen.num_bad_params == 2


# Losses and flags


@pytest.mark.parametrize(
    ('losses', 'loss', 'is_finite'),
    [
        ([0.5], 0.5, True),
        ([1.0, 2.0, 4.0], 7.0, True),
        ([1.0, NAN, 4.0], NAN, False),
        ([1.0, 2.0, INF], INF, False),
        ([INF, -INF], NAN, False),
        # Each of them is finite, whatever their sum is.
        ([3e38, 3e38], 6e38, True),
    ],
)
def test_each_loss_of_a_window_counts(losses, loss, is_finite):
    seen, _ = look([ONE], [torch.tensor(value) for value in losses])
    assert seen.loss == pytest.approx(loss, nan_ok=True)
    assert seen.loss_is_finite is is_finite
    assert seen.is_clean is is_finite


def test_losses_are_unscaled_already():
    assert look([ONE], [ONE], scale=ScaleReading(8.0))[0].loss == 1.0


def test_no_loss_is_an_unknown_loss():
    seen, _ = look([ONE], [])
    assert math.isnan(seen.loss)
    assert seen.loss_is_finite


@pytest.mark.parametrize(
    ('facts', 'is_finite'),
    [
        ({}, True),
        ({'input': []}, True),
        ({'input': [torch.tensor(False), torch.tensor(0)]}, True),
        ({'input': [torch.tensor(False), torch.tensor(True)]}, False),
        ({'a': [torch.tensor(0.0)], 'b': [torch.tensor(2)]}, False),
    ],
)
def test_any_flag_marks_the_input(facts, is_finite):
    seen, _ = look([ONE], facts=facts)
    assert seen.input_is_finite is is_finite
    assert seen.is_clean is is_finite


def test_bad_buffers_are_handed_on():
    model, snapshot = nn.BatchNorm1d(2), Snapshot()
    snapshot.take(model)
    model.running_mean[0] = NAN
    seen, reading = look([ONE], snapshot=snapshot)
    assert not seen.buffers_are_finite
    assert not seen.is_clean
    assert reading.changes.bad == [(model, 'running_mean')]


# The second look


def test_bad_weights_are_found_by_the_second_look():
    grads = [torch.tensor([NAN])]
    weights = [torch.zeros(3), torch.tensor([0.0, INF]), torch.zeros(2).int()]
    seen, reading = look(grads)
    assert seen.weights_are_finite
    assert not diagnose(seen, reading, grads, weights).weights_are_finite
    assert diagnose(seen, reading, grads, weights[::2]).weights_are_finite


def test_the_second_look_keeps_what_was_seen():
    grads = [torch.tensor([3.0]), torch.tensor([4.0])]
    seen, reading = look(grads, [torch.tensor(NAN)])
    assert diagnose(seen, reading, grads, grads).loss_is_finite is False
    assert diagnose(seen, reading, grads, grads).grad_norm == 5.0
    assert diagnose(seen, reading, grads, grads).num_bad_params == 0


# The one sync


@pytest.mark.parametrize('norm_type', [2.0, 3.0])
@pytest.mark.parametrize(
    'grads', [[ONE, ONE], [ONE.half(), ONE], [torch.tensor(NAN)], []]
)
def test_exactly_one_host_read(norm_type, grads, monkeypatch):
    reads = []

    def count(name):
        plain = getattr(torch.Tensor, name)

        def method(self, *args, **kwargs):
            reads.append(name)
            return plain(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, method)

    for name in (
        'item',
        'tolist',
        'numpy',
        'cpu',
        '__float__',
        '__int__',
        '__bool__',
        '__index__',
    ):
        count(name)
    model, tracker = nn.BatchNorm1d(2), ChangeTracker()
    for _ in range(5):  # comparing buffers, and no longer
        snapshot = Snapshot(tracker)
        snapshot.take(model)
        model.num_batches_tracked.add_(1)
        reads.clear()
        look(
            grads,
            [ONE, ONE],
            {'input': [torch.tensor(True)]},
            snapshot=snapshot,
            norm_type=norm_type,
        )
        assert reads == ['tolist']
        snapshot.commit()
