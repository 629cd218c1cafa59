"""A table of decisions: observation, state and policy give a verdict."""

import math
from dataclasses import replace

import pytest

from mmnanguard.core import (
    Action,
    Cause,
    GuardPolicy,
    GuardState,
    NormClip,
    Observation,
    ScaleMove,
    ScaleReading,
    Verdict,
    decide,
)
from mmnanguard.core.rules.decide import MOST_HARMLESS
from mmnanguard.core.rules.observation import NORM_LIMIT
from mmnanguard.core.rules.recent_commits import Commit

NAN, INF = math.nan, math.inf
CLEAN = dict(loss=1.0, grad_norm=2.0)
BAD_GRAD = dict(loss=1.0, grad_norm=NAN, grad_is_finite=False)
FP16 = ScaleReading(1024.0, 1.0, lower_is_due=True)
AT_FLOOR = ScaleReading(1.0, 1.0)
NO_SCALER = ScaleReading()
PROVEN = GuardState(commits_since_growth=100)
SKIP, STEP, HALT = Action.SKIP, Action.STEP, Action.HALT
KEEP, LOWER, GROW = ScaleMove.KEEP, ScaleMove.LOWER, ScaleMove.GROW


@pytest.mark.parametrize(
    ('seen', 'scale', 'state', 'expected'),
    [
        (CLEAN, NO_SCALER, GuardState(), Verdict(STEP)),
        (CLEAN, FP16, GuardState(), Verdict(STEP)),
        (
            CLEAN,
            ScaleReading(1024.0, 1.0, growth_is_due=True),
            GuardState(),
            Verdict(STEP, scale_move=GROW),
        ),
        # One cause each.
        (
            dict(loss=NAN, loss_is_finite=False),
            FP16,
            PROVEN,
            Verdict(SKIP, Cause.LOSS_NONFINITE, KEEP, blames_scale=False),
        ),
        (
            dict(loss=1.0, buffers_are_finite=False),
            FP16,
            PROVEN,
            Verdict(SKIP, Cause.BUFFER_NONFINITE, KEEP),
        ),
        (
            dict(loss=1.0, input_is_finite=False),
            FP16,
            PROVEN,
            Verdict(SKIP, Cause.INPUT_NONFINITE, KEEP),
        ),
        (
            dict(loss=1.0, weights_are_finite=False),
            FP16,
            PROVEN,
            Verdict(HALT, Cause.WEIGHT_NONFINITE, KEEP),
        ),
        (
            dict(loss=1.0, grad_norm=INF),
            FP16,
            PROVEN,
            Verdict(SKIP, Cause.NORM_OVERFLOW, LOWER),
        ),
        (
            dict(loss=1.0, grad_norm=NORM_LIMIT * 1.001),
            NO_SCALER,
            GuardState(),
            Verdict(SKIP, Cause.NORM_OVERFLOW, KEEP),
        ),
        (
            dict(loss=1.0, grad_norm=NORM_LIMIT),
            NO_SCALER,
            GuardState(),
            Verdict(STEP),
        ),
        # A NaN norm is never within a limit.
        (
            dict(loss=1.0, grad_norm=NAN),
            NO_SCALER,
            GuardState(),
            Verdict(SKIP, Cause.NORM_OVERFLOW, KEEP),
        ),
        # Routine at a scale that is not proven, an anomaly elsewhere.
        (
            BAD_GRAD,
            FP16,
            GuardState(commits_since_growth=99),
            Verdict(SKIP, Cause.SCALE_OVERFLOW, LOWER),
        ),
        (BAD_GRAD, FP16, PROVEN, Verdict(SKIP, Cause.GRAD_NONFINITE, LOWER)),
        (
            BAD_GRAD,
            AT_FLOOR,
            GuardState(),
            Verdict(SKIP, Cause.GRAD_NONFINITE, KEEP),
        ),
        (
            BAD_GRAD,
            NO_SCALER,
            GuardState(),
            Verdict(SKIP, Cause.GRAD_NONFINITE, KEEP),
        ),
        # Hysteresis not used up.
        (
            BAD_GRAD,
            ScaleReading(1024.0, 1.0, lower_is_due=False),
            PROVEN,
            Verdict(SKIP, Cause.GRAD_NONFINITE, KEEP),
        ),
    ],
)
def test_verdict(seen, scale, state, expected):
    seen = Observation(scale=scale, **seen)
    assert decide(seen, state, GuardPolicy()) == expected


def test_the_most_fundamental_cause_wins():
    flags = [
        ('weights_are_finite', Cause.WEIGHT_NONFINITE),
        ('input_is_finite', Cause.INPUT_NONFINITE),
        ('loss_is_finite', Cause.LOSS_NONFINITE),
        ('buffers_are_finite', Cause.BUFFER_NONFINITE),
        ('grad_is_finite', Cause.GRAD_NONFINITE),
    ]
    for index, (_, cause) in enumerate(flags):
        bad = {flag: False for flag, _ in flags[index:]}
        seen = Observation(loss=1.0, grad_norm=NAN, **bad)
        assert decide(seen, PROVEN, GuardPolicy()).cause is cause


@pytest.mark.parametrize(
    ('norm', 'coef'), [(1.0, 1.0), (2.0, 1.0), (4.0, 2.0 / (4.0 + 1e-6))]
)
def test_clip_coefficient_is_pytorchs(norm, coef):
    seen = Observation(loss=1.0, grad_norm=norm)
    verdict = decide(seen, GuardState(), GuardPolicy(), NormClip(2.0 + 1e-6))
    assert verdict.clip_coef == pytest.approx(coef, rel=1e-6)


def test_clip_goes_by_the_norm_it_asks_for():
    seen = Observation(loss=1.0, grad_norm=100.0, clip_norm=1.0)
    verdict = decide(seen, GuardState(), GuardPolicy(), NormClip(2.0))
    assert verdict.clip_coef == 1.0


BAD_LOSS = Observation(loss=NAN, loss_is_finite=False)


@pytest.mark.parametrize(
    ('streak', 'limit', 'action'),
    [(0, 2, SKIP), (1, 2, HALT), (0, 1, HALT), (10**6, None, SKIP)],
)
def test_consecutive_limit_is_inclusive(streak, limit, action):
    policy = GuardPolicy(max_consecutive_skips=limit, max_skip_rate=None)
    state = GuardState(consecutive_skips=streak)
    assert decide(BAD_LOSS, state, policy).action is action


@pytest.mark.parametrize(
    ('recent', 'rate', 'action'),
    [
        ('ooo', 0.5, SKIP),  # with this skip 1 of 4
        ('oxo', 0.5, SKIP),  # 2 of 4: the limit is exclusive
        ('xxo', 0.5, HALT),  # 3 of 4
        ('xo', 0.5, SKIP),  # the window is not full
        ('xxx', 0.5, SKIP),  # one streak: max_consecutive_skips' business
        ('xxo', None, SKIP),
        ('ooo', 0.0, HALT),
    ],
)
def test_skip_rate(recent, rate, action):
    policy = GuardPolicy(
        max_consecutive_skips=None, max_skip_rate=rate, skip_rate_window=4
    )
    state = GuardState(
        recent_skips=tuple(mark == 'x' for mark in recent), skip_rate_window=4
    )
    assert decide(BAD_LOSS, state, policy).action is action


@pytest.mark.parametrize(
    ('seen', 'losses', 'rate', 'action'),
    [
        # MMEngine's scaler skips them, too, and learns from the others.
        (BAD_GRAD, [2.0, 1.0], 0.5, SKIP),
        (dict(BAD_GRAD, loss_is_finite=False), [2.0, 1.0], 0.5, SKIP),
        # A run that has exploded, a limit of the user, no scaler.
        (BAD_GRAD, [1.0, 1e3, 1e6], 0.5, HALT),
        (BAD_GRAD, [2.0, 1.0], 0.4, HALT),
        (dict(BAD_GRAD, scale=NO_SCALER), [2.0, 1.0], 0.5, HALT),
    ],
)
def test_skip_rate_of_bad_gradients_in_float16(seen, losses, rate, action):
    policy = GuardPolicy(
        max_consecutive_skips=None, max_skip_rate=rate, skip_rate_window=4
    )
    state = GuardState(
        recent_skips=(True, True, False),
        skip_rate_window=4,
        commits_since_growth=100,
        recent_commits=tuple(Commit(0, loss, loss) for loss in losses),
    )
    seen = Observation(**{'scale': FP16, **seen})
    assert decide(seen, state, policy).action is action


def test_routine_overflows_spend_no_budget():
    seen = Observation(scale=FP16, **BAD_GRAD)
    policy = GuardPolicy(max_consecutive_skips=1, max_skip_rate=0.0)
    state = GuardState()
    for _ in range(50):
        verdict = decide(seen, state, policy)
        assert verdict.action is SKIP
        state = state.after(seen, verdict)
    assert state.routine_overflows == 50
    assert state.total_skips == state.consecutive_skips == 0


@pytest.mark.parametrize(
    ('facts', 'counts'),
    [
        (dict(loss=NAN, loss_is_finite=False), False),
        (dict(loss=INF, loss_is_finite=False, grad_norm=0.0), False),
        (dict(loss=1.0, input_is_finite=False), False),
        # Harm: bad gradients, a norm out of bounds, bad buffers, no gradient.
        (dict(loss=NAN, loss_is_finite=False, grad_is_finite=False), True),
        (dict(loss=NAN, loss_is_finite=False, grad_norm=INF), True),
        (dict(loss=NAN, loss_is_finite=False, buffers_are_finite=False), True),
        (dict(loss=NAN, loss_is_finite=False, num_params=0), True),
        (dict(loss=1.0, weights_are_finite=False), True),
        (dict(loss=1.0, buffers_are_finite=False), True),
    ],
)
def test_an_update_counts_if_it_would_have_done_harm(facts, counts):
    seen = Observation(**{**dict(grad_norm=1.0, num_params=3), **facts})
    policy = GuardPolicy(max_consecutive_skips=1)
    verdict = decide(seen, GuardState(), policy)
    assert verdict.counts == counts
    assert (verdict.action is SKIP) == (not counts)
    state = GuardState().after(seen, verdict)
    assert state.total_skips == 1
    assert state.consecutive_skips == len(state.recent_skips) == int(counts)


LOSS_ALONE = dict(loss=INF, loss_is_finite=False, grad_norm=2.0, num_params=1)


def fates(facts, num):
    """Return what becomes of a streak of equal updates, and the state."""
    state, actions = GuardState(), []
    for _ in range(num):
        seen = Observation(**facts)
        verdict = decide(seen, state, GuardPolicy(), NormClip(1.0))
        state = state.after(seen, verdict)
        actions.append(verdict.action)
    return actions, state


def test_a_loss_that_is_never_finite_does_not_stop_learning():
    actions, state = fates(LOSS_ALONE, MOST_HARMLESS + 3)
    assert actions == [SKIP] * MOST_HARMLESS + [STEP] * 3
    assert state.num_steps == 3
    assert state.consecutive_skips == 0
    seen = Observation(**LOSS_ALONE)
    verdict = decide(seen, state, GuardPolicy(), NormClip(1.0))
    assert (verdict.cause, verdict.counts) == (Cause.LOSS_NONFINITE, False)
    assert verdict.clip_coef == NormClip(1.0).coefficient(2.0)


def share_committed(every, num=300):
    """Return the share of committed updates if some losses are not finite."""
    state, num_steps, num_bad = GuardState(), 0, 0
    for number in range(1, num + 1):
        is_bad = number % every == 0
        seen = Observation(**(LOSS_ALONE if is_bad else CLEAN))
        verdict = decide(seen, state, GuardPolicy())
        state = state.after(seen, verdict)
        num_bad += is_bad
        num_steps += is_bad and verdict.action is STEP
    return num_steps / num_bad


def test_frequent_losses_that_are_not_finite_do_not_slow_learning():
    assert share_committed(every=4) > 0.8
    # One odd sample in an epoch is left out for good.
    assert share_committed(every=16) == 0


def test_good_losses_are_trusted_again():
    _, state = fates(LOSS_ALONE, 100)
    clean, seen = Observation(**CLEAN), Observation(**LOSS_ALONE)
    for _ in range(120):
        state = state.after(clean, decide(clean, state, GuardPolicy()))
    assert decide(seen, state, GuardPolicy()).action is SKIP


@pytest.mark.parametrize(
    'fault',
    [
        dict(grad_norm=0.0),  # nothing can be learnt
        dict(grad_norm=NAN, grad_is_finite=False),
        dict(grad_norm=INF),
        dict(buffers_are_finite=False),
        dict(input_is_finite=False),
        dict(weights_are_finite=False),
        dict(step_is_finite=False),
    ],
)
def test_nothing_else_may_be_bad(fault):
    state = GuardState(harmless_skips=MOST_HARMLESS)
    seen = Observation(**{**LOSS_ALONE, **fault})
    assert decide(seen, state, GuardPolicy()).action is not STEP


def test_a_loss_that_is_not_finite_is_no_spike():
    policy = GuardPolicy.from_config(dict(spike=dict(action='skip')))
    state = GuardState.from_dict({}, **policy.windows())
    for _ in range(130):
        clean = Observation(**CLEAN)
        state = state.after(clean, decide(clean, state, policy))
    state = replace(state, harmless_skips=MOST_HARMLESS)
    large = {**LOSS_ALONE, 'grad_norm': 1e6}
    verdict = decide(Observation(**large), state, policy)
    assert (verdict.action, verdict.spike) == (STEP, None)
    finite = {**large, 'loss': 1.0, 'loss_is_finite': True}
    assert decide(Observation(**finite), state, policy).action is SKIP


def test_a_loss_that_is_not_finite_enters_no_statistics():
    policy = GuardPolicy.from_config(dict(spike={}, divergence={}))
    state = GuardState.from_dict(
        dict(harmless_skips=MOST_HARMLESS), **policy.windows()
    )
    seen = Observation(**LOSS_ALONE)
    after = state.after(seen, decide(seen, state, policy))
    assert after.recent_losses == after.loss_level.recent == ()
    assert len(after.recent_norms) == 1
    assert GuardState.from_dict(after.to_dict(), **policy.windows()) == after
