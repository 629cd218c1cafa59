"""The loss scale moves by evidence: simulated runs beside PyTorch's rule.

A simulated gradient overflows float16 if its largest element, scaled, is
above 65504. A pole makes NaN or Inf at any scale.
"""

import math
import random
from typing import NamedTuple

import pytest

from mmnanguard.core import (
    Cause,
    GuardPolicy,
    GuardState,
    LeftOut,
    Observation,
    ScaleMove,
    decide,
)
from mmnanguard.numerics import GuardedGradScaler
from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER

pytestmark = pytest.mark.skipif(
    not HAS_CPU_SCALER, reason='a scaler for a CPU needs torch>=2.3'
)
LIMIT = 65504.0
NO_LIMITS = GuardPolicy(max_consecutive_skips=None, max_skip_rate=None)


class Batch(NamedTuple):
    """A simulated batch.

    Attributes:
        norm: The unscaled gradient norm.
        peak: The largest unscaled element anywhere in backward.
        pole: 'nan' or 'inf' if backward makes it at any scale.
        has_inf: Whether an overflow leaves an Inf in a gradient.
        loss_is_finite: Whether the loss is finite.
    """

    norm: float = 1.0
    peak: float = 1.0
    pole: str = ''
    has_inf: bool = True
    loss_is_finite: bool = True


class Run(NamedTuple):
    scales: list  # before each update
    causes: list
    moves: list
    num_lost: int
    state: GuardState
    scaler: GuardedGradScaler


def see(batch, scale):
    is_bad = batch.pole or batch.peak * scale.value > LIMIT
    has_inf = batch.pole == 'inf' or (not batch.pole and batch.has_inf)
    return Observation(
        loss=1.0 if batch.loss_is_finite else math.inf,
        loss_is_finite=batch.loss_is_finite,
        grad_norm=math.nan if is_bad else batch.norm,
        grad_is_finite=not is_bad,
        num_params=3,
        num_bad_params=3 if is_bad else 0,
        num_inf_params=2 if is_bad and has_inf else 0,
        scale=scale,
    )


def train(loss_scale, batches, policy=NO_LIMITS, resume_at=()):
    scaler = GuardedGradScaler.from_config(loss_scale, 'cpu')
    state = GuardState()
    scales, causes, moves, num_lost = [], [], [], 0
    for number, batch in enumerate(batches):
        if number in resume_at:
            saved, state = state.to_dict(), None
            state = GuardState.from_dict(saved, 200)
            saved = scaler.state_dict()
            scaler = GuardedGradScaler.from_config(loss_scale, 'cpu')
            scaler.load_state_dict(saved)
        seen = see(batch, scaler.read())
        verdict = decide(seen, state, policy)
        scales.append(scaler.get_scale())
        scaler.move(verdict)
        state = state.after(seen, verdict, 0.1, policy.proven_after)
        causes.append(verdict.cause)
        moves.append(verdict.scale_move)
        # Those that PyTorch's scaler would have committed at a fitting scale.
        num_lost += not (seen.grad_is_finite or batch.pole)
    return Run(scales, causes, moves, num_lost, state, scaler)


def lost_by_pytorch(scale, batches):
    """Return what GradScaler's rule loses to overflows, without poles."""
    num_lost, num_clean = 0, 0
    for batch in batches:
        if batch.pole:
            continue
        if batch.peak * scale > LIMIT:
            num_lost, num_clean, scale = num_lost + 1, 0, scale / 2
            continue
        num_clean += 1
        if num_clean == 2000:
            num_clean, scale = 0, scale * 2
    return num_lost


def with_poles(batches, chance, pole='nan', seed=0):
    draw = random.Random(seed)
    result = []
    for batch in batches:
        if draw.random() < chance:
            batch = batch._replace(pole=pole)
        result.append(batch)
    return result


# A pole is no reason to lower the scale


@pytest.mark.parametrize('norm', [1e-7, 1e-3, 1.0, 14.0, 100.0])
@pytest.mark.parametrize('chance', [1 / 40, 1 / 5, 1 / 2])
@pytest.mark.parametrize('pole', ['nan', 'inf'])
def test_poles_leave_a_static_scale_where_it_is(norm, chance, pole):
    batches = with_poles([Batch(norm, norm / 9)] * 1500, chance, pole)
    run = train(512.0, batches)
    assert run.num_lost == 0
    # The scale may be tried lower for a while, where that does no harm.
    is_low = [scale < 512.0 for scale in run.scales]
    assert sum(is_low) < 0.3 * len(is_low)
    assert sum(is_low[-300:]) < 30
    for scale in set(run.scales):
        assert scale == 512.0 or scale * norm * 64 > 1e-5 or scale >= 64.0


def test_a_pole_is_an_anomaly_and_no_routine_overflow():
    """A scale that one commit has proven leaves room enough."""
    run = train(4096.0, [Batch(), Batch(pole='nan'), Batch()])
    assert run.causes[1] is Cause.GRAD_NONFINITE
    assert run.scales == [4096.0] * 3


# A real overflow is cured as by PyTorch's scaler


@pytest.mark.parametrize('has_inf', [True, False])
@pytest.mark.parametrize('loss_scale', [2.0**20, 'dynamic'])
@pytest.mark.parametrize('norm', [0.01, 1.0, 50.0])
def test_a_scale_that_is_too_large_from_the_start(loss_scale, has_inf, norm):
    batches = [Batch(norm, 30.0, has_inf=has_inf)] * 400
    run = train(loss_scale, batches)
    first = run.scales[0]
    lost = lost_by_pytorch(first, batches)
    assert lost in (5, 9)
    # A return that fails costs one update, and then comes later and later.
    assert lost <= run.num_lost <= lost + 2
    assert LIMIT / 60 < run.scales[-1] <= LIMIT / 30 or norm < 1


@pytest.mark.parametrize('has_inf', [True, False])
@pytest.mark.parametrize('peak', [9.0, 100.0, 1e4])
def test_a_step_of_the_gradients(has_inf, peak):
    """A loss weight changes, and all gradients become larger."""
    batches = [Batch()] * 150 + [Batch(peak, peak, has_inf=has_inf)] * 90
    run = train(8192.0, batches)
    lost = lost_by_pytorch(8192.0, batches)
    # Isolated NaN at a scale with room is not blamed; the next one is.
    assert run.num_lost <= max(lost, 2)


@pytest.mark.parametrize('has_inf', [True, False])
def test_gradients_that_grow(has_inf):
    batches = []
    for number in range(1100):
        size = 1.01**number
        batches.append(Batch(size, size / 2, has_inf=has_inf))
    run = train(4096.0, batches)
    lost = lost_by_pytorch(4096.0, batches)
    assert lost > 5
    assert run.num_lost <= lost


def test_outliers_that_overflow():
    """One batch of 20 is larger by 200: the scale comes down for it."""
    batches = [Batch(), *[Batch()] * 18, Batch(200.0, 200.0)] * 30
    run = train(4096.0, batches)
    assert run.num_lost <= lost_by_pytorch(4096.0, batches) + 1
    assert run.scales[-1] <= 256.0


def test_outliers_that_overflow_beside_poles():
    batches = [Batch(), *[Batch()] * 18, Batch(200.0, 200.0)] * 30
    run = train(4096.0, with_poles(batches, 1 / 20))
    assert run.num_lost <= lost_by_pytorch(4096.0, batches) + 4
    assert 32.0 <= run.scales[-1] <= 512.0


# A lowered scale comes back


def test_a_static_scale_comes_back_after_proven_after_clean_commits():
    policy = GuardPolicy(proven_after=7)
    batches = [Batch()] * 3 + [Batch(pole='inf')] + [Batch()] * 20
    run = train(512.0, batches, policy)
    assert run.scales[4:11] == [256.0] * 7
    assert run.scales[11:] == [512.0] * 13
    assert run.moves.count(ScaleMove.RETURN) == 1


def test_a_scale_that_still_overflows_is_tried_ever_later():
    """One update per try, and then straight back to what fitted."""
    policy = GuardPolicy(proven_after=10)
    batches = [Batch()] * 20 + [Batch(0.1, 500.0)] * 400
    run = train(4096.0, batches, policy)
    tries = [n for n, s in enumerate(run.scales) if n > 30 and s == 4096.0]
    assert run.scales[-1] == 128.0
    assert 2 <= len(tries) <= 6
    waits = [later - sooner for sooner, later in zip(tries, tries[1:])]
    assert waits == sorted(waits)
    assert set(run.scales[25:]) == {4096.0, 128.0}


@pytest.mark.parametrize('has_inf', [True, False])
def test_a_norm_near_the_limit_keeps_the_scale_low(has_inf):
    batches = [Batch()] * 20 + [Batch(40.0, 40.0, has_inf=has_inf)] * 400
    run = train(4096.0, batches)
    assert run.num_lost == 2
    assert run.scales[-1] == 1024.0


def test_lowering_that_did_not_help_is_undone():
    """Gradients are near the limit, so NaN may be an overflow."""
    batches = []
    for _ in range(30):
        batches += [Batch(12.0, 9.0)] * 30 + [Batch(pole='nan')]
    run = train(4096.0, batches)
    assert min(run.scales) == 512.0  # 12 * 512 leaves room for 8
    assert run.scales[-1] == 4096.0
    assert run.moves.count(ScaleMove.RETURN) == 1
    assert run.state.scale_trial.nan_is_overflow is False


def test_a_pole_does_not_bring_back_a_scale_that_never_worked():
    batch = Batch(0.1, 1.0, has_inf=False)
    run = train(2.0**20, [batch] * 40 + [Batch(pole='nan')] + [batch] * 20)
    assert set(run.scales[20:]) == {2.0**15}


def test_inf_that_three_lowerings_have_not_cured():
    """The gradients have room for a factor of 16,000."""
    batches = ([Batch(1e-3, 1e-3)] * 20 + [Batch(pole='inf')]) * 12
    run = train(4096.0, batches)
    assert min(run.scales) == 512.0
    assert run.scales[-1] == 4096.0
    assert run.state.scale_trial.inf_is_overflow is False


@pytest.mark.parametrize('chance', [0.5, 0.7])
def test_streaks_of_poles(chance):
    batches = with_poles([Batch()] * 2000, chance)
    run = train(4096.0, batches)
    lowered = [s < 4096.0 for s, b in zip(run.scales, batches) if not b.pole]
    assert sum(lowered) < 0.2 * len(lowered)


@pytest.mark.parametrize('chance', [1 / 20, 1 / 3])
@pytest.mark.parametrize('first', ['nan', 'inf'])
def test_a_run_that_begins_with_a_pole(chance, first):
    """Nothing has shown that the scale fits, but poles are no overflows."""
    batches = with_poles([Batch()] * 600, chance)
    bad = Batch(pole=first)
    run = train(4096.0, [bad, bad, *batches])
    assert run.scales[2] == 1024.0
    assert run.scales[-1] == 4096.0
    assert sum(scale < 4096.0 for scale in run.scales) < 120


@pytest.mark.parametrize('norm', [14.0, 100.0])
def test_norms_above_the_limit_whose_elements_fit(norm):
    """A norm over many elements may be above the limit of each."""
    usual = [Batch(norm, norm / 30)]
    bad = [Batch(pole='nan')] * 12
    run = train(4096.0, usual * 150 + bad + usual * 150)
    assert min(run.scales) == 1.0
    assert run.scales[-1] == 4096.0
    # Bad updates that are no overflows do not make it wait longer.
    usual = with_poles(usual * 600, 1 / 20)
    run = train(4096.0, [*usual[:200], *bad, *usual[200:]])
    assert run.scales[-1] == 4096.0


# Dynamic scales


@pytest.mark.parametrize('gain', [1e5, 1e7])
def test_a_loss_that_is_a_large_sum_needs_a_scale_below_1(gain):
    batches = [Batch(3 * gain, gain)] * 300
    run = train('dynamic', batches)
    assert run.num_lost == lost_by_pytorch(65536.0, batches)
    assert LIMIT / 2 < run.scales[-1] * gain <= LIMIT
    # Only down to 1 nothing is known yet.
    assert run.causes.count(Cause.SCALE_OVERFLOW) == 16


def test_poles_lower_no_dynamic_scale_below_1():
    batches = with_poles([Batch()] * 600, 1 / 3)
    run = train('dynamic', batches)
    assert run.scales[-1] == min(run.scales) == 1.0


@pytest.mark.parametrize('seed', range(6))
def test_a_dynamic_scale_that_is_not_proven_moves_as_pytorchs(seed):
    draw = random.Random(seed)
    keys = dict(init_scale=2.0 ** draw.randint(43, 56), growth_interval=9)
    # So small that the scale never needs to be below 1.
    batches = [Batch(norm=2.0**-40, peak=2.0**-40)] * 300
    batches = with_poles(batches, 0.1, 'nan', seed)
    run = train(dict(keys, min_scale=2.0**-100), batches)
    scale, num_clean = keys['init_scale'], 0
    for batch, actual in zip(batches, run.scales):
        assert actual == scale
        num_clean += 1
        if batch.pole or batch.peak * scale > LIMIT:
            scale, num_clean = scale / 2, 0
        elif num_clean == 9:
            scale, num_clean = scale * 2, 0


def test_a_proven_dynamic_scale_with_room_is_lowered_on_trial_only():
    """The first pole is no reason, and lowering does not help the others."""
    batches = [Batch(1e-5, 1e-5)] * 150
    batches += [Batch(pole='nan'), *[Batch(1e-5, 1e-5)] * 50] * 9
    run = train('dynamic', batches)
    at_poles = run.scales[150::51]
    assert (
        at_poles
        == [65536.0, 65536.0, 8192.0, 1024.0, 128.0, 16.0] + [65536.0] * 3
    )
    assert run.moves.count(ScaleMove.RETURN) == 1
    # Without room it is lowered, as MMEngine's own.
    run = train('dynamic', [b._replace(norm=1.0) for b in batches])
    assert run.scales[-1] < 65536.0
    # A short record of commits is no evidence against MMEngine's own move.
    policy = GuardPolicy(proven_after=10)
    run = train('dynamic', batches[:20] + batches[150:], policy)
    assert run.scales[21] == 32768.0


@pytest.mark.parametrize('loss_is_finite', [True, False])
@pytest.mark.parametrize('peak', [3.0, 100.0])
def test_an_overflow_of_single_batches_that_leaves_nan_only(
    peak, loss_is_finite
):
    """The norm of the other batches leaves much room."""
    bad = Batch(1e-5, peak, '', False, loss_is_finite)
    batches = [*[Batch(1e-5, 1e-5)] * 150, bad] * 30
    run = train('dynamic', batches)
    num_spared = 1 if loss_is_finite else 4
    lost = lost_by_pytorch(65536.0, batches)
    assert lost in (4, 8)
    assert run.num_lost <= num_spared + lost // 2


def test_an_overflow_beside_a_bad_loss_is_cured_as_by_pytorchs_scaler():
    """The loss is bad at any scale, and gradients fit a lower one."""
    batches = [Batch(1.0, 3000.0, '', True, False)] * 100
    run = train('dynamic', batches, GuardPolicy())
    assert run.num_lost == lost_by_pytorch(65536.0, batches) == 12
    # A static scale, which MMEngine keeps, is no reason for a bad loss.
    run = train(65536.0, batches)
    assert set(run.scales) == {65536.0}


# Checkpoints, ranks, micro-batches


def test_a_resume_makes_no_difference():
    batches = [Batch()] * 19 + [Batch(200.0, 200.0)]
    batches = with_poles(batches * 20, 1 / 10)
    whole = train(4096.0, batches)
    parts = train(4096.0, batches, resume_at=range(0, 400, 7))
    assert parts.scales == whole.scales
    assert parts.state == whole.state


def test_a_micro_batch_that_was_left_out_moves_the_scale_by_the_same_rule():
    scaler = GuardedGradScaler.from_config(4096.0, 'cpu')
    state = GuardState()
    for pole, expected in (('', 4096.0), ('nan', 4096.0), ('inf', 2048.0)):
        seen = see(Batch(), scaler.read())
        if pole:
            bad = see(Batch(pole=pole), scaler.read())
            left_out = LeftOut(bad, ((0, 1, 1),), 4)
            seen = Observation(
                loss=1.0, grad_norm=1.0, scale=seen.scale, left_out=left_out
            )
        verdict = decide(seen, state, NO_LIMITS)
        assert verdict.action.value == 'step'
        scaler.move(verdict)
        state = state.after(seen, verdict, 0.1)
        assert scaler.get_scale() == expected
    assert state.scale_trial.tries_of_inf == 1
