"""Detection of a run that lost what it had learnt, all numbers finite."""

import math
import random

import pytest

from mmnanguard.core import (
    Action,
    Cause,
    GuardConfigError,
    GuardPolicy,
    GuardState,
    Observation,
    decide,
)

LEARNT = [2.3] * 5 + [2.0, 1.5, 1.0, 0.5] + [0.3] * 5
LIMIT = 0.3 + 0.7 * (2.3 - 0.3)


def make_policy(**rule):
    return GuardPolicy.from_config(
        dict(
            when_exhausted='rollback', divergence=dict(dict(window=5), **rule)
        )
    )


def run(policy, losses, state=None):
    """Return the state and the verdicts after the loss of each update."""
    state = state or GuardState.from_dict({}, **policy.windows())
    verdicts = []
    for loss in losses:
        seen = Observation(
            loss=loss, loss_is_finite=math.isfinite(loss), grad_norm=1.0
        )
        verdicts.append(decide(seen, state, policy))
        state = state.after(seen, verdicts[-1])
    return state, verdicts


def is_over(policy, losses):
    return run(policy, losses)[1][-1].cause is Cause.DIVERGENCE


def test_the_median_decides():
    policy = make_policy()
    for height in (LIMIT * 1.001, 1e9):  # the height of one is no matter
        _, verdicts = run(policy, [*LEARNT, *[height] * 3])
        assert all(verdict.cause is Cause.NONE for verdict in verdicts[:-1])
        last = verdicts[-1]
        assert last.action is Action.ROLLBACK
        assert last.cause is Cause.DIVERGENCE
    assert not is_over(policy, [*LEARNT, *[LIMIT * 0.999] * 9])
    assert not is_over(policy, [*LEARNT, 1e9, 0.3, 1e9, 0.3, 0.3, 0.3])


def test_what_is_found_is_told():
    _, verdicts = run(make_policy(), [*LEARNT, *[2.3] * 3])
    spike = verdicts[-1].spike
    assert spike.what == 'median_loss'
    assert spike.value == 2.3
    assert spike.limit == pytest.approx(LIMIT)
    assert spike.mean == 0.3


def test_without_a_rollback_it_halts():
    policy = GuardPolicy.from_config(dict(divergence=dict(window=5)))
    _, verdicts = run(policy, [*LEARNT, *[2.3] * 3])
    assert verdicts[-1].action is Action.HALT


def test_losses_may_be_negative():
    policy = make_policy()
    lower = [loss - 9 for loss in LEARNT]
    assert is_over(policy, [*lower, *[-6.7] * 3])
    assert not is_over(policy, [*lower, *[LIMIT - 9.001] * 9])


def test_what_never_learns_does_not_diverge():
    policy = make_policy()
    noise = [2.3, 2.5, 2.1, 2.4, 2.2] * 20
    late = [1e3, *[2.3] * 4, *noise]  # a high first loss was not the level
    for losses in (noise, [2.3] * 9 + [5.0] * 9, late):
        _, verdicts = run(policy, losses)
        assert all(verdict.cause is Cause.NONE for verdict in verdicts)


def test_learning_within_the_noise_is_not_judged():
    noisy = [1.0, 0.5, 1.5, 0.7, 1.3] * 4
    losses = [1.2, 1.7, 0.7, 1.4, *noisy, *[1.6] * 9]
    _, verdicts = run(make_policy(), losses)
    assert all(verdict.cause is Cause.NONE for verdict in verdicts)


def test_a_steep_fall_is_no_noise():
    policy = make_policy()
    level = [*[0.3] * 3, *[0.31, 0.32] * 4]  # the first median is the lowest
    assert is_over(policy, [*[2.3] * 5, *level, *[2.3] * 3])


def test_only_committed_losses_enter():
    policy = make_policy()
    clean, _ = run(policy, LEARNT)
    state, verdicts = run(policy, [*LEARNT, math.nan, math.inf])
    assert all(verdict.action is Action.SKIP for verdict in verdicts[-2:])
    assert state.loss_level == clean.loss_level
    over, _ = run(policy, [*LEARNT, 2.3, 2.3, 2.3])
    again, _ = run(policy, [2.3], over)
    assert again.loss_level == over.loss_level  # rejected, until it is back


def test_a_rollback_takes_it_back():
    policy = make_policy()
    kept, _ = run(policy, LEARNT)
    over, _ = run(policy, [2.3] * 3, kept)
    back = over.rolled_back(kept, 0.1, 0.0)
    assert back.loss_level == kept.loss_level
    _, verdicts = run(policy, [0.3] * 9, back)
    assert all(verdict.cause is Cause.NONE for verdict in verdicts)


def test_it_is_saved_and_resumed():
    policy = make_policy()
    state, _ = run(policy, LEARNT)
    saved = state.to_dict()
    assert GuardState.from_dict(saved, **policy.windows()) == state
    other = GuardState.from_dict(saved, **make_policy(window=6).windows())
    assert other.loss_level.start is None  # medians of other windows
    assert GuardState.from_dict(saved, 200).loss_level.window == 0
    del saved['loss_level']
    old = GuardState.from_dict(saved, **policy.windows())
    assert old.loss_level.start is None


@pytest.mark.parametrize(
    ('key', 'value'),
    [('window', 1), ('window', 2.5), ('share', 0), ('share', math.nan)],
)
def test_values_out_of_range(key, value):
    with pytest.raises(GuardConfigError, match=f'divergence.{key} is'):
        make_policy(**{key: value})


def healthy_losses(kind, seed, length=8000):
    """Return losses that fall a little, then stay, with noise of batches."""
    draw = random.Random(seed)
    slow = 0.0
    for number in range(length):
        learnt = math.exp(-number / 300)
        if kind == 'normal':
            yield draw.gauss(1 + 0.6 * learnt, 0.3)
        elif kind == 'exponential':
            yield (0.5 + 0.5 * learnt) * draw.expovariate(1)
        elif kind == 'gamma':
            yield (0.6 + 0.4 * learnt) * draw.gammavariate(4, 0.25)
        elif kind == 'restarts':  # of the learning rate
            rise = 0.9 * math.exp(-(number % 1000) / 50) * (number >= 1000)
            yield draw.gauss(0.3 + 2 * learnt + rise, 0.1)
        elif kind == 'slow':
            slow = 0.98 * slow + draw.gauss(0, 0.01)
            yield draw.gauss(1 + 0.5 * learnt + slow, 0.1)


@pytest.mark.parametrize(
    'kind', ['normal', 'exponential', 'gamma', 'restarts', 'slow']
)
def test_what_is_healthy_does_not_diverge(kind):
    policy = make_policy(window=32)
    rule = policy.divergence
    for seed in range(3):
        level = GuardState.from_dict({}, **policy.windows()).loss_level
        for number, loss in enumerate(healthy_losses(kind, seed)):
            assert rule.find(level, loss) is None, (seed, number)
            level = level.after(loss)
