import json
import math

import pytest

from mmnanguard.core import (
    Action,
    Cause,
    GuardEvent,
    GuardState,
    Observation,
    ScaleReading,
    Verdict,
)
from mmnanguard.core.evidence import Evidence
from mmnanguard.core.growth_advice import explain_growth
from mmnanguard.core.rules.recent_commits import (
    Commit,
    find_early_end,
    find_growth,
)
from mmnanguard.core.rules.usual_norm import usual_norm
from mmnanguard.hooks.recovery.lower_rate import RateEvidence

NOISE = [1.0, 1.2, 0.9, 1.1, 1.3, 0.8, 1.0, 1.1]


def commits(losses, norms=None):
    norms = norms or [1.0] * len(losses)
    return [
        Commit(number, *numbers)
        for number, numbers in enumerate(zip(losses, norms), start=1)
    ]


@pytest.mark.parametrize(
    ('losses', 'norms'),
    [
        ([132.0, 699.0, 6.9e8], [3.0, 40.0, 3e12]),  # a rate far too high
        ([2.3, 900.0], [1.0, 5e4]),  # one step was enough
        ([*NOISE, 3.0, 9.0, 30.0], None),  # late in a run
        ([*NOISE, 40.0, 25.0, 300.0, 200.0], None),  # momentum swings
        ([-1.0, -30.0, -5e3], None),  # a critic's loss has no lower bound
        ([2.3, 2.3, 2.3, 2.3], [1.0, 9.0, 80.0, 900.0]),  # norms alone
        # Slowly, and the net is dead for the last batches.
        ([*[3.0**i for i in range(40)], 0.0, 5.0, 0.0], None),
    ],
)
def test_explosions(losses, norms):
    assert find_growth(commits(losses, norms))


@pytest.mark.parametrize(
    ('losses', 'norms'),
    [
        ([], None),
        ([1.0], None),
        (NOISE, NOISE),
        ([*NOISE, 30.0], None),  # one batch may be odd
        ([*NOISE, 30.0, 1.0], None),  # it was
        ([2.3, 2.2, 2.0, 1.5], [0.01, 0.1, 1.0, 10.0]),  # a head warms up
        ([1.0, 4.0, 20.0], [9.0, 4.0, 1.0]),  # an adversary learns
        ([*NOISE, *[20.0] * 30, 1.0, 20.0, 1.0], None),  # a loss was added
        ([0.0, 0.0, 1.0], [0.0, 0.0, 1.0]),  # nothing to compare with
        ([math.nan] * 5, [math.nan] * 5),  # no loss was seen
    ],
)
def test_no_explosions(losses, norms):
    assert find_growth(commits(losses, norms)) is None


def test_the_usual_norm_is_that_before_a_long_explosion():
    norms = [*[2.0] * 20, *[2.0**i for i in range(44)]]
    growth = find_growth(commits([1.0] * 64, norms))
    assert growth.usual_norm == 2.0
    # Nothing usual is left.
    growth = find_growth(commits([1.0] * 64, [2.0**i for i in range(64)]))
    assert math.isnan(growth.usual_norm)
    _, advice = explain_growth(growth, Evidence(''))
    assert 'max_norm=1), which is a convention' in advice.long


@pytest.mark.parametrize(
    'norms',
    [
        [321.0],  # the only step
        [112.0, 6e6],
        [35.0, 100.0, 1e3, 1e5],
        [1.5**i for i in range(12)],
        [1.1**i for i in range(64)],
    ],
)
def test_the_norms_of_an_explosion_are_not_usual(norms):
    assert math.isnan(usual_norm(norms))


@pytest.mark.parametrize(
    ('norms', 'usual'),
    [
        ([3.0, 2.0, 2.5, 40.0, 9e3], 2.0),
        ([*[90.0] * 8, *[2.0] * 20, 60.0, 1e4, 3e3], 2.0),  # it learnt first
        ([*[2.0] * 20, 30.0, 2.0, 1e4, 1e9], 2.0),  # one odd batch
        ([1.0, 1.0, *[5.0] * 20, 1e4, 3e3], 5.0),  # it warmed up first
    ],
)
def test_the_usual_norm_is_that_before_the_accused_steps(norms, usual):
    assert usual_norm(norms) == usual


@pytest.mark.parametrize(('norm', 'is_large'), [(1e7, True), (3.0, False)])
def test_large_gradients_in_the_first_step_are_of_the_inputs(norm, is_large):
    growth = find_growth(commits([1.0, 1e9], [norm, norm * 1e9]))
    _, advice = explain_growth(growth, Evidence(''))
    assert ('normalize inputs and targets' in advice.long) == is_large


def now_and_then(history, first, every, num, value):
    """Return a record that ends with few commits and many rejections."""
    late = [Commit(first + every * i, value, value) for i in range(num)]
    return [*history, *late]


@pytest.mark.parametrize('value', [0.0, 1.0])
def test_an_exploded_run_may_commit_now_and_then(value):
    losses = [1.3, 29.0, 80.0, 2e11]
    history = commits(losses, losses)
    record = now_and_then(history, 17, 16, 10, value)
    assert find_growth(record).losses == tuple(losses)
    # Dead at once, without any rejection.
    dead = [*history, Commit(5, 0.0, 0.0)]
    assert find_growth(dead).losses == tuple(losses)


def test_a_run_that_went_on_had_not_exploded():
    history = commits([1.3, 29.0, 80.0, 2e11])
    # One rejection, and 20 commits in a row.
    record = now_and_then(history, 6, 1, 20, 1.0)
    assert find_growth(record) is None
    calm = commits(NOISE)
    assert find_growth(now_and_then(calm, 90, 16, 5, 1.0)) is None


def test_norms_that_overflow_blame_the_rate():
    event = GuardEvent(
        iter=12, action=Action.ROLLBACK, cause=Cause.NORM_OVERFLOW
    )
    record = commits([3.0, 2.0, 3.0], [3.0, 2.0, 3.0])
    evidence = RateEvidence.of(event, GuardState(recent_commits=tuple(record)))
    assert evidence.blames_rate
    assert 'until their norm overflowed' in evidence.words(100)
    # No step has led to norms that overflow from the start.
    assert not RateEvidence.of(event, GuardState())


@pytest.mark.parametrize(
    ('norms', 'is_jump'),
    [
        ([*NOISE, 5e11], True),
        ([*NOISE, 5e11, 8e14], True),  # its consequence
        ([*NOISE, 3.0, 40.0, 3e12], False),  # the run explodes
        ([*NOISE, 9.0, 80.0, 900.0], False),
        ([1.0, 5e6], False),  # too early to know a usual norm
    ],
)
def test_one_batch_that_jumps_does_not_blame_the_rate(norms, is_jump):
    growth = find_growth(commits(norms, norms))
    assert (growth.jump > 0) == is_jump
    assert RateEvidence(growth, has_diverged=False).blames_rate != is_jump
    event = GuardEvent(12, Action.SKIP, Cause.LOSS_NONFINITE, since=12)
    _, advice = explain_growth(growth, Evidence('', [event]))
    assert ('lower the learning rate' in advice.short) != is_jump
    assert ('(iteration 12)' in advice.long) == is_jump
    assert 'clip' in advice.short
    assert 'clip_grad' in advice.long


def test_first_steps_that_nothing_follows_are_suspects():
    history = commits([1.0, 2.0])
    assert find_early_end(history, num_commits=2, num_skips=3).factor == 0
    # Two bad batches may be chance, and later steps follow many good ones.
    assert find_early_end(history, num_commits=2, num_skips=2) is None
    assert find_early_end(history, num_commits=20, num_skips=3) is None


def test_norms_that_grow_while_losses_fall_are_no_explosion():
    losses, norms = [79.8, 51.5, 49.6, 41.9], [9.9, 4.7, 323.0, 188.0]
    noise = [90.0] * 8
    falling = commits([30.0, *noise, *losses], [5.0] * 9 + norms)
    assert find_growth(falling) is None
    wavering = commits(
        [30.0, *noise, 60.0, 70.0, 49.6, 61.9], [5.0] * 9 + norms
    )
    assert find_growth(wavering) is not None


def test_the_update_at_fault_counts_if_it_is_finite():
    history = commits([1.0, 8.0])
    assert find_growth(history) is None
    assert find_growth(history, loss=math.nan) is None
    growth = find_growth(history, loss=600.0)
    assert growth.words() == 'loss 1 -> 8 -> 600, gradient norm 1 -> 1 -> nan'


def test_the_state_keeps_what_was_committed():
    state = GuardState()
    for number in range(100):
        seen = Observation(1.0, grad_norm=number, scale=ScaleReading(8.0))
        verdict = Verdict(Action.STEP, clip_coef=0.5, lr_factor=0.1)
        state = state.after(seen, verdict, lr=2.0)
        # A rejected update leaves no trace here.
        state = state.after(seen, Verdict(Action.SKIP), lr=2.0)
    assert len(state.recent_commits) == 64
    last = Commit(199, 1.0, 99, 0.2, 8.0, 0.5)
    assert state.recent_commits[-1] == last


def test_the_record_is_saved_in_builtins():
    state = GuardState()
    for _ in range(3):
        state = state.after(
            Observation(1.0, grad_norm=2.0), Verdict(Action.STEP), 0.1
        )
    saved = json.loads(json.dumps(state.to_dict()))
    assert GuardState.from_dict(saved, 200) == state
    # Another version may know fewer numbers, or more.
    saved['recent_commits']['new'] = [1, 2, 3]
    del saved['recent_commits']['clip_coef']
    assert GuardState.from_dict(saved, 200) == state
    saved['recent_commits']['lr'][1] = None
    loaded = GuardState.from_dict(saved, 200)
    assert math.isnan(loaded.recent_commits[1].lr)
    assert loaded.to_dict()['recent_commits']['lr'] == [0.1, None, 0.1]
    del saved['recent_commits']
    assert GuardState.from_dict(saved, 200).recent_commits == ()


def test_first_steps_are_no_suspects_after_rejections_before_them():
    first = [Commit(1, 1.0, 1.0)]
    assert find_early_end(first, 1, 20).factor == 0
    late = [first[0]._replace(update=11)]
    assert find_early_end(late, 1, 20) is None
    # Overflows of a new loss scale are no reason.
    assert find_early_end(late, 1, 20, num_routine=10) is not None
    # They went on after the first step, so that it has not caused them.
    assert find_early_end(late, 1, 20, num_routine=14) is None
