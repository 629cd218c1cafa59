"""The badge of a run, and the lines below it."""

import math
from array import array
from dataclasses import replace

import pytest
from event_rows import audit, halt, rollback, start, update

from mmnanguard.report.assessment import judge
from mmnanguard.report.loss_rise import Rise
from mmnanguard.report.read_scalars import Curve
from mmnanguard.report.summarize import summarize


def judged(rows, last_iter):
    return judge(summarize([start(), *rows], last_iter))


REPEATED = [update(i, name='neck.bias') for i in range(100, 600, 100)]
ROLLBACK = [
    *(update(i) for i in (600, 603)),
    *(update(610, 'divergence', action='rollback'), rollback(610)),
]
STREAK_AND_ROLLBACK = [
    *(update(i, consecutive_skips=i - 19) for i in range(20, 25)),
    rollback(25),
]
RECOVERED = {
    'a rollback': (
        ROLLBACK,
        820,
        'recovered from trouble since iteration 600: went back to an earlier '
        'state at iteration 610 (divergence); 210 iterations went well since; '
        'next: lower the learning rate, lengthen warm-up, or clip',
    ),
    'the same parameter again and again, but long ago': (
        REPEATED,
        1000,
        'recovered from trouble since iteration 100: 5 updates were rejected '
        "for grad_nonfinite of 'neck.bias', the last at iteration 500; 500 "
        'iterations went well since; next: '
        'find the operation with mmnanguard.AutopsyHook',
    ),
    'a short run': (
        STREAK_AND_ROLLBACK,
        60,
        'recovered from trouble since iteration 25: went back to an earlier '
        'state at iteration 25 (weight_nonfinite); 35 iterations went well '
        'since; next: resume from the last clean checkpoint',
    ),
    'an audit, after which the run went back': (
        [audit(300), dict(rollback(300), id='a-300-audit.1')],
        600,
        'recovered from trouble since iteration 300: an audit found that '
        "'head.weight' (weight) is NaN, 1 of 8; 300 iterations went well "
        'since; next: resume from the last clean checkpoint',
    ),
}
NOT_RECOVERED = {
    'too recent': (ROLLBACK, 809),
    'too recent in a short run': (STREAK_AND_ROLLBACK, 48),
    'rarer than the quiet is long': (REPEATED, 999),
    'an audit, after which nothing was loaded': ([audit(300)], 9000),
    'a rollback before the bad audit': ([rollback(20), audit(300)], 9000),
    'a halt': ([*ROLLBACK, halt(610)], 9000),
}


@pytest.mark.parametrize(
    ('rows', 'last_iter', 'expected'), RECOVERED.values(), ids=RECOVERED.keys()
)
def test_recovered(rows, last_iter, expected):
    verdict = judged(rows, last_iter)
    assert verdict.sentence == expected
    assert (verdict.badge, verdict.is_healthy) == ('Recovered', True)
    assert 'went well since' in verdict.headline


@pytest.mark.parametrize(
    ('rows', 'last_iter'), NOT_RECOVERED.values(), ids=NOT_RECOVERED.keys()
)
def test_not_recovered(rows, last_iter):
    verdict = judged(rows, last_iter)
    assert (verdict.badge, verdict.is_healthy) == ('Sick', False)


@pytest.mark.parametrize(
    ('losses', 'badge'),
    [
        ([2, 1, 0.9, 2, 1, 0.8], 'Recovered'),
        ([2, 1, 0.9, 2, 1.7, 1.7], 'Sick'),
        ([2, 1, 0.9, 2, 0.5, math.nan], 'Sick'),
        # The trouble came before the first logged loss.
        ([2, 2, 2], 'Recovered'),
        ([2, 8, 8], 'Sick'),
    ],
)
def test_a_loss_that_stays_high_has_not_recovered(losses, badge):
    iters = range(1000 - 100 * (len(losses) - 1), 1001, 100)
    first = iters[len(losses) // 2 - 1] if len(losses) > 3 else 300
    rows = [start(), update(first + 1), rollback(first + 2)]
    curve = Curve(array('q', iters), array('d', losses))
    since = 1000 if math.isnan(losses[-1]) else None
    summary = replace(
        summarize(rows, 1000), loss=curve, log_nonfinite_since=since
    )
    assert judge(summary).badge == badge


@pytest.mark.parametrize(
    ('last_iter', 'badge'), [(309, 'Healthy'), (310, 'Recovered')]
)
def test_a_resumed_run_recovers_by_and_by(last_iter, badge):
    rows = [halt(200), start(201, attempt=2), update(300)]
    assert judged(rows, last_iter).badge == badge


LINES = {
    'Sick': ([update(7, 'loss_nonfinite', samples=('a.jpg',)), halt(7)], 7),
    'Crashed': ([dict(kind='end', how='crashed', iter=9, error='E: e')], 9),
    'Not guarded': ([start(2, unguarded={'gen': 'OptimWrapper'})], 9),
    'Unclear': ([], 9),
}


@pytest.mark.parametrize('badge', LINES)
def test_headline_cause_and_action_are_lines_of_their_own(badge):
    rows, last_iter = LINES[badge]
    rise = Rise(1.0, 99.0) if badge == 'Unclear' else None
    summary = summarize([start(), *rows], last_iter)
    verdict = judge(replace(summary, log_rise=rise))
    headline, cause = {
        'Sick': ('halted at iteration 7 (loss_nonfinite)', 'loss is Inf'),
        'Crashed': ('crashed at iteration 9', 'E: e'),
        'Not guarded': ("optimizer 'gen' is run by OptimWrapper", ''),
        'Unclear': ('not sick, but the loss ended 99 times above', ''),
    }[badge]
    assert verdict.badge == badge
    assert verdict.headline.startswith(headline)
    assert verdict.cause.startswith(cause)
    assert bool(verdict.cause) == bool(cause)
    assert verdict.action == verdict.steps[0].text
    assert verdict.action not in verdict.headline + verdict.cause


def test_counts_go_by_the_iterations_that_there_were():
    """The run went on with the checkpoint of another one."""
    first = start(5001)
    rows = [update(i, name=f'p{i}') for i in range(5002, 5007)]
    verdict = judge(summarize([first, *rows], 5010))
    assert verdict.headline.startswith('5 of the last 10 updates')
    verdict = judge(summarize([first], 5010))
    assert verdict.headline == '10 iterations, none rejected'
