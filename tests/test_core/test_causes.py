"""One table has all facts of a cause, and all readers of facts use it."""

import math
import re
from dataclasses import fields
from pathlib import Path

import pytest
from event_rows import autopsy, halt, start, update, write_events

import mmnanguard
from mmnanguard.core import (
    Action,
    BadTensor,
    Cause,
    GuardEvent,
    GuardPolicy,
    GuardState,
    Observation,
    find_cause,
)
from mmnanguard.core.causes import CAUSES, UNKNOWN, facts_of_cause
from mmnanguard.core.rows.halt_story import write_halt_story
from mmnanguard.core.rules.decide import choose_action
from mmnanguard.report import load_run
from mmnanguard.report.assessment import judge
from mmnanguard.report.figure import draw
from mmnanguard.report.page import section
from mmnanguard.report.summarize import summarize

PACKAGE = Path(mmnanguard.__file__).parent
DOCS = PACKAGE.parent / 'docs'
NAMED = [cause for cause in Cause if cause is not Cause.NONE]
BAD = BadTensor('head.weight', 'gradient', 'nan', 1, 8, -0.5, 0.5, 'float32')
SPIKE = dict(what='loss', value=9.0, limit=5.0, mean=3.0)
FLAGS = [item.name for item in fields(Observation) if item.type is bool]
# The code that finds a cause, or acts on one that it has found itself.
PRODUCERS = {
    'core/causes.py',
    'core/rules/decide.py',
    'hooks/inputs/input_guard_hook.py',
    'hooks/_shared/audit.py',
    'report/alerts.py',
    'report/findings.py',
    'report/summarize.py',
}


def by_name(cause):
    return cause.value


def event_of(cause, **keys):
    values = dict(
        action=Action.SKIP,
        cause=cause,
        iter=9,
        loss=-2.0,
        params=(BAD,),
        num_bad_params=1,
        num_params=8,
        loss_scale={'before': 4.0, 'after': 4.0},
        spike=SPIKE,
    )
    return GuardEvent(**{**values, **keys})


def judged(rows):
    return judge(summarize([start(), *rows]))


def test_the_table_and_the_enum_agree():
    """Table and enum have the same order: the most fundamental cause first."""
    assert list(CAUSES) == NAMED
    assert facts_of_cause('gremlins') is facts_of_cause('none') is UNKNOWN


@pytest.mark.parametrize('cause', NAMED, ids=by_name)
def test_the_facts_make_sense(cause):
    facts = CAUSES[cause]
    assert re.fullmatch('#[0-9a-f]{6}', facts.color)
    assert facts_of_cause(cause.value) is facts
    for advice in filter(None, (facts.advice, facts.unscaled_advice)):
        assert re.fullmatch(r'[a-z].*[^.]', advice.short)
        assert re.fullmatch(r'[A-Z].*\.', advice.long)
        assert not advice.detail or re.fullmatch(r'[A-Z].*\.', advice.detail)
    assert (cause.is_scaled, cause.is_routine) == (
        facts.is_scaled,
        facts.is_routine,
    )
    # Each of these would contradict itself.
    assert not (facts.is_routine and facts.ends_run)
    assert facts.is_scaled or not facts.is_routine
    # A loss scale also says that float16 is at work.
    assert facts.is_replayable or facts.unscaled_advice is None
    assert not (facts.is_gradual and facts.is_of_batch)
    assert facts.is_replayable or 'module' not in facts.culprits
    assert facts.is_of_batch or facts.blames != 'largest gradient'


def test_each_color_stands_for_one_cause():
    colors = [facts.color for facts in (*CAUSES.values(), UNKNOWN)]
    assert len(set(colors)) == len(colors)


def test_no_cause_is_neither_scaled_nor_routine():
    assert not Cause.NONE.is_scaled
    assert not Cause.NONE.is_routine


@pytest.mark.parametrize('cause', NAMED, ids=by_name)
def test_the_console_tells_each_cause(cause):
    line = event_of(cause).line()
    assert line.startswith('Iter 9: ')
    assert '\n' not in line
    bare = event_of(cause, params=(), spike=None, loss=math.nan).line()
    for text in (line, bare):
        assert not set('{}') & set(text)
        assert 'None' not in text
        assert '-1' not in text
    others = [event_of(other).line() for other in NAMED if other is not cause]
    # An overflow looks the same, and is told apart by what was done.
    assert line not in others


@pytest.mark.parametrize('scale', [{'before': 4.0, 'after': 4.0}, None])
@pytest.mark.parametrize('cause', NAMED, ids=by_name)
def test_each_cause_can_halt_a_run(cause, scale):
    event = event_of(cause, action=Action.HALT, loss_scale=scale)
    facts = CAUSES[cause]
    story = write_halt_story(event, [event], GuardPolicy())
    advice = facts.advice_for(has_scale=scale is not None)
    assert f'Causes: {cause.value} x1' in story
    assert f'What to try: {advice.long}' in story
    assert ('To go on longer' in story) != facts.ends_run


@pytest.mark.parametrize('cause', NAMED, ids=by_name)
def test_the_most_frequent_cause_gets_the_advice(cause):
    """A cause that ends a run at once gets the advice, whatever preceded."""
    event = event_of(cause, action=Action.HALT)
    before = event_of(Cause.LOSS_NONFINITE)
    story = write_halt_story(event, [before, before, event], GuardPolicy())
    ends_run = CAUSES[cause].ends_run
    advised = CAUSES[cause if ends_run else Cause.LOSS_NONFINITE]
    assert f'What to try: {advised.advice.long}' in story


@pytest.mark.parametrize('cause', NAMED, ids=by_name)
def test_the_report_draws_and_advises_each_cause(cause, tmp_path):
    keys = dict(spike=SPIKE, name='head.weight', action='halt')
    rows = [start(), update(9, cause.value, **keys), halt(9)]
    write_events(tmp_path / '1', rows)
    report = load_run(str(tmp_path))
    facts = CAUSES[cause]
    assert report.verdict.sentence.startswith(
        f'sick since iteration 9: halted at iteration 9 ({cause.value})'
    )
    assert facts.advice.short in [step.text for step in report.verdict.steps]
    details = [step.detail for step in report.verdict.steps]
    assert (facts.advice.detail or facts.advice.long) in details
    traces = {
        trace['name']: trace['marker']['color']
        for trace in draw(report)['data']
        if 'marker' in trace
    }
    assert traces[cause.value] == facts.color
    assert traces[f'{cause.value} (1)'] == facts.color
    (shown,) = section(report, 9)['causes']
    assert (shown['name'], shown['color']) == (cause.value, facts.color)


@pytest.mark.parametrize('scale', [{'before': 4.0, 'after': 4.0}, None])
@pytest.mark.parametrize('cause', NAMED, ids=by_name)
def test_the_report_advises_with_and_without_a_scale(cause, scale):
    keys = dict(action='halt', spike=SPIKE, loss_scale=scale)
    verdict = judged([update(9, cause.value, **keys), halt(9)])
    advice = CAUSES[cause].advice_for(has_scale=scale is not None)
    step = verdict.steps[0]
    assert step.text == advice.short
    is_of_weights = CAUSES[cause].blames == 'weight'
    assert ('train CONFIG --resume' in step.code) == is_of_weights
    assert step.detail == (advice.detail or advice.long)


@pytest.mark.parametrize('cause', NAMED, ids=by_name)
def test_the_report_names_the_culprits_of_each_cause(cause):
    facts = CAUSES[cause]
    keys = dict(action='halt', spike=SPIKE, samples=('b.jpg',))
    rows = [update(iter_, cause.value, **keys) for iter_ in (1, 5, 9)]
    sentence = judged([*rows, halt(9)]).sentence
    is_suspect = 'sample' in facts.culprits and facts.is_of_batch
    assert ("suspect: sample 'b.jpg'" in sentence) == is_suspect
    sentence = judged([*rows, autopsy(9), halt(9)]).sentence
    assert ("culprit: 'head'" in sentence) == ('module' in facts.culprits)
    keys['samples'] = 'a.jpg', 'b.jpg'
    rows = [update(iter_, cause.value, **keys) for iter_ in (1, 5, 9)]
    verdict = judged([*rows, autopsy(9, samples=('a.jpg',)), halt(9)])
    has_sample = 'sample' in facts.culprits
    assert ("culprit: sample 'a.jpg'" in verdict.sentence) == has_sample
    # To leave the sample out comes first only where a sample is at fault.
    assert verdict.steps[0].text.startswith('leave out') == has_sample


@pytest.mark.parametrize('cause', NAMED, ids=by_name)
def test_rejections_that_name_nothing_add_up(cause):
    facts = CAUSES[cause]
    rows = [
        update(iter_, cause.value, spike=SPIKE)
        for iter_ in range(1, 1250, 250)
    ]
    is_sick = facts.adds_up and not facts.is_routine
    assert judged(rows).is_healthy != is_sick


@pytest.mark.parametrize('flag', FLAGS)
def test_each_flag_of_an_observation_leads_to_a_cause(flag):
    seen = Observation(loss=1.0, **{flag: False})
    assert not seen.is_clean
    assert find_cause(seen, GuardState(), GuardPolicy()) is not Cause.NONE


@pytest.mark.parametrize('cause', NAMED, ids=by_name)
def test_what_ends_a_run_or_is_routine_asks_no_limit(cause):
    facts, spent = CAUSES[cause], GuardPolicy(max_consecutive_skips=1)
    free = GuardPolicy(max_consecutive_skips=None, max_skip_rate=None)
    seen = Observation(loss=1.0)
    at_limit = choose_action(cause, seen, GuardState(), spent)
    assert at_limit is (Action.SKIP if facts.is_routine else Action.HALT)
    before = choose_action(cause, seen, GuardState(), free)
    assert before is (Action.HALT if facts.ends_run else Action.SKIP)


def table_rows(path):
    """Return cause and last cell of each row of the page's tables."""
    cells = re.findall(
        r'^\|.*`(\w+)` \|.*?([^|]+) \|$', path.read_text(), re.M
    )
    names = {cause.value for cause in NAMED}
    return [(name, last.strip()) for name, last in cells if name in names]


@pytest.mark.parametrize('page', ['events', 'how_it_works'])
@pytest.mark.parametrize(
    ('language', 'kept', 'lowered'),
    [('en', 'kept', 'lowered'), ('zh_cn', '不变', '减小')],
)
def test_the_docs_list_each_cause_in_order(page, language, kept, lowered):
    words = {True: lowered, False: kept}
    expected = [(cause.value, words[cause.is_scaled]) for cause in NAMED]
    path = DOCS / language / f'{page}.md'
    rows = table_rows(path)
    assert [row for row in rows if row[1] in (kept, lowered)] == expected


def test_all_else_asks_the_table():
    """No other code compares causes, as it would miss a new cause."""
    names = '|'.join(cause.value for cause in NAMED if '_' in cause.value)
    named = {
        path.relative_to(PACKAGE).as_posix()
        for path in [*PACKAGE.rglob('*.py'), *PACKAGE.rglob('*.js')]
        if re.search(rf"Cause\.(?!NONE)[A-Z_]+|'({names})'", path.read_text())
    }
    assert named == PRODUCERS
