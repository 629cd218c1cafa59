import math

from mmnanguard.core import (
    Action,
    Cause,
    GuardPolicy,
    GuardState,
    Observation,
    ScaleMove,
    ScaleReading,
    Verdict,
    decide,
)

GOOD = Observation(loss=1.0, grad_norm=1.0)
BAD = Observation(loss=math.nan, loss_is_finite=False)


def test_one_good_two_bad_one_good_three_bad_and_out():
    policy = GuardPolicy(max_consecutive_skips=3, max_skip_rate=None)
    state = GuardState(skip_rate_window=4)
    steps = []
    for seen in (GOOD, BAD, BAD, GOOD, BAD, BAD, BAD):
        verdict = decide(seen, state, policy)
        state = state.after(seen, verdict)
        steps.append((verdict.action.value, state.consecutive_skips))
    assert steps == [
        ('step', 0),
        ('skip', 1),
        ('skip', 2),
        ('step', 0),
        ('skip', 1),
        ('skip', 2),
        ('halt', 3),
    ]
    assert (state.num_updates, state.num_steps, state.total_skips) == (7, 2, 5)
    assert state.recent_skips == (False, True, True, True)


def test_growth_starts_the_proof_anew():
    state = GuardState(commits_since_growth=5)
    step = Verdict(Action.STEP)
    assert state.after(GOOD, step).commits_since_growth == 6
    grown = Verdict(Action.STEP, scale_move=ScaleMove.GROW)
    assert state.after(GOOD, grown).commits_since_growth == 0


def test_lowering_keeps_the_proof():
    """A state that was good at scale 1024 is good at 512 too."""
    state = GuardState(commits_since_growth=500)
    lowered = Verdict(Action.SKIP, Cause.GRAD_NONFINITE, ScaleMove.LOWER)
    state = state.after(GOOD, lowered)
    seen = Observation(
        loss=1.0,
        grad_norm=math.nan,
        grad_is_finite=False,
        scale=ScaleReading(512.0, 1.0, lower_is_due=True),
    )
    assert decide(seen, state, GuardPolicy()).cause is Cause.GRAD_NONFINITE


def test_round_trip_and_tolerance():
    state = GuardState(num_updates=3, recent_skips=(True, False, True))
    saved = state.to_dict()
    assert GuardState.from_dict(saved, 200) == state
    assert saved['recent_skips'] == [True, False, True]
    # Another version's keys, a shorter window, nothing at all.
    assert GuardState.from_dict({**saved, 'new': 1}, 2).recent_skips == (
        False,
        True,
    )
    assert GuardState.from_dict({}, 200) == GuardState()
