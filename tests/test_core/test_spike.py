"""Spikes: finite numbers that are far above the recent ones."""

import math
import statistics

import pytest

from mmnanguard.core import (
    Action,
    Cause,
    GuardConfigError,
    GuardPolicy,
    GuardState,
    Observation,
    ScaleMove,
    ScaleReading,
    decide,
)

NORMS = (1.0, 1.2, 0.8, 1.1, 0.9)
LIMIT = 1.0 + 3 * statistics.pstdev(NORMS)


def make_policy(**spike):
    return GuardPolicy.from_config(
        dict(spike=dict(dict(threshold=3, window=5), **spike))
    )


def run(policy, updates):
    """Return the state and the verdicts after (norm, loss) of each update."""
    state = GuardState.from_dict({}, 200, policy.spike.window)
    verdicts = []
    for norm, loss in updates:
        seen = Observation(
            loss=loss,
            loss_is_finite=math.isfinite(loss),
            grad_norm=norm,
            grad_is_finite=math.isfinite(norm),
        )
        verdicts.append(decide(seen, state, policy))
        state = state.after(seen, verdicts[-1])
    return state, verdicts


def usual(*more):
    return [(norm, -norm) for norm in NORMS] + list(more)


@pytest.mark.parametrize(
    ('norm', 'loss', 'what'),
    [
        (LIMIT * 0.999, -1.0, None),
        (LIMIT * 1.001, -1.0, 'grad_norm'),
        (1.0, LIMIT - 2 - 0.001, None),  # losses may be negative
        (1.0, LIMIT - 2 + 0.001, 'loss'),
        (9.0, 9.0, 'grad_norm'),
        (0.0, -99.0, None),  # below is no spike
    ],
)
def test_limits(norm, loss, what):
    _, verdicts = run(make_policy(), usual((norm, loss)))
    assert [v.action for v in verdicts[:5]] == [Action.STEP] * 5
    last = verdicts[-1]
    if what is None:
        assert (last.action, last.cause) == (Action.STEP, Cause.NONE)
    else:
        assert (last.action, last.cause) == (Action.SKIP, Cause.SPIKE)
        assert last.spike.what == what
        assert last.spike.value == dict(grad_norm=norm, loss=loss)[what]
        assert last.scale_move is ScaleMove.KEEP


@pytest.mark.parametrize(('warmup', 'seen'), [(None, 5), (2, 2), (5, 5)])
def test_nothing_is_judged_in_warm_up(warmup, seen):
    for length in range(1, 6):
        _, verdicts = run(
            make_policy(warmup=warmup), [*usual()[:length], (1e9, 0.0)]
        )
        judged = verdicts[-1].cause is Cause.SPIKE
        assert judged == (length >= seen), length


@pytest.mark.parametrize(
    'bad', [(math.nan, 1.0), (math.inf, 1.0), (1, math.nan)]
)
def test_what_is_rejected_never_enters(bad):
    policy = make_policy()
    clean, _ = run(policy, usual())
    state, verdicts = run(policy, usual(bad, (99.0, 0.0), bad, (1.0, 99.0)))
    assert all(v.action is Action.SKIP for v in verdicts[5:])
    assert state.recent_norms == clean.recent_norms
    assert state.recent_losses == clean.recent_losses


def test_a_plateau_is_skipped_until_the_run_halts():
    policy = GuardPolicy.from_config(
        dict(max_consecutive_skips=3, spike=dict(threshold=3, window=5))
    )
    _, verdicts = run(policy, usual(*[(9.0, 0.0)] * 3))
    assert [v.action for v in verdicts[5:]] == [
        *[Action.SKIP] * 2,
        Action.HALT,
    ]


def test_clip_commits_at_the_usual_norm_and_learns_slowly():
    state, verdicts = run(make_policy(action='clip'), usual((10.0, -1.0)))
    last = verdicts[-1]
    assert (last.action, last.cause) == (Action.STEP, Cause.SPIKE)
    assert last.clip_coef == pytest.approx(0.1)
    assert state.recent_norms[-1] == pytest.approx(LIMIT)
    # A step up becomes the usual after a while.
    _, verdicts = run(make_policy(action='clip'), usual(*[(10.0, -1.0)] * 60))
    assert verdicts[-1].cause is Cause.NONE


def test_clip_of_a_loss_scales_to_the_usual_norm():
    _, verdicts = run(make_policy(action='clip'), usual((2.0, 9.0)))
    assert verdicts[-1].spike.what == 'grad_norm'
    _, verdicts = run(make_policy(action='clip'), usual((1.25, 9.0)))
    assert verdicts[-1].spike.what == 'loss'
    assert verdicts[-1].clip_coef == pytest.approx(1 / 1.25)


def test_a_constant_series_allows_a_little():
    policy = make_policy()
    updates = [(1.0, 0.0)] * 5
    assert run(policy, [*updates, (1.002, 0.0)])[1][-1].cause is Cause.NONE
    assert run(policy, [*updates, (1.004, 0.0)])[1][-1].cause is Cause.SPIKE


def test_a_clipped_spike_may_grow_the_scale():
    policy = make_policy(action='clip')
    state, _ = run(policy, usual())
    due = ScaleReading(8.0, 1.0, growth_is_due=True)
    seen = Observation(loss=-1.0, grad_norm=10.0, scale=due)
    assert decide(seen, state, policy).scale_move is ScaleMove.GROW


def test_the_state_survives_a_round_trip():
    policy = make_policy()
    state, _ = run(policy, usual((9.0, 0.0)))
    saved = state.to_dict()
    assert GuardState.from_dict(saved, 200, 5) == state
    # The windows are the config's.
    assert GuardState.from_dict(saved, 200, 3).recent_norms == NORMS[-3:]
    assert GuardState.from_dict(saved, 200).recent_norms == ()


@pytest.mark.parametrize(
    ('spike', 'words'),
    [
        (dict(thresh=3), ["'thresh'", "'threshold'"]),
        (dict(threshold=0), ['threshold', '0']),
        (dict(threshold=math.nan), ['nan']),
        (dict(window=1), ['window', 'at least 2']),
        (dict(window=True), ['True']),
        (dict(window=5, warmup=6), ['warmup', 'from 2 to window']),
        (dict(action='halt'), ["'halt'", 'skip, clip']),
        (7, ['guard.spike', '7']),
    ],
)
def test_bad_configs(spike, words):
    with pytest.raises(GuardConfigError) as caught:
        GuardPolicy.from_config(dict(spike=spike))
    for word in words:
        assert word in str(caught.value)
