"""The alerts and margins of a run as text, as JSON, and on the page."""

from contextlib import suppress
from dataclasses import replace

import pytest
from event_rows import (
    alert,
    audit,
    halt,
    header,
    remedy,
    routine,
    sample,
    start,
    streak,
    update,
    write_events,
    write_samples,
)
from toys import guard_hooks, make_runner, wrapper

from mmnanguard.core import TrainingHalted
from mmnanguard.report import load_run, print_reports
from mmnanguard.report.alerts import alerts_of
from mmnanguard.report.assessment import judge
from mmnanguard.report.loss_rise import Rise
from mmnanguard.report.page import section
from mmnanguard.report.stability_figure import draw_stability
from mmnanguard.report.summarize import summarize

pytest.importorskip('plotly')
pytest.importorskip('rich')

END = dict(schema=1, kind='end', how='finished', iter=300)
BAD = 'loss_nonfinite'


def report_of(folder, samples=(), rows=(END,)):
    write_events(folder / '1', [start(), *rows])
    write_samples(folder / '1', samples)
    return load_run(str(folder))


# What came of alerts.


def outcomes(*rows, **changes):
    summary = replace(summarize([start(), *rows]), **changes)
    return [(item.lead, item.outcome) for item in alerts_of(summary)]


@pytest.mark.parametrize(
    ('rows', 'expected'),
    [
        ([END], (None, 'nothing came of it')),
        ([routine(9), END], (None, 'nothing came of it')),
        (
            [update(30), END],
            (23, '23 iterations before the first rejected update '),
        ),
        (
            [update(8), END],
            (1, '1 iteration before the first rejected update '),
        ),
        ([update(30, BAD), audit(9)], (2, '2 iterations before an audit ')),
        ([halt(40)], (33, '33 iterations before the run halted')),
        (
            [update(30), update(50, BAD), END],
            (
                23,
                '23 iterations before the first rejected update '
                '(grad_nonfinite), 43 before loss_nonfinite',
            ),
        ),
        ([dict(END, how='crashed')], (None, 'no update was rejected after')),
        ([], (None, 'nothing has come of it so far')),
    ],
)
def test_what_came_of_an_alert(rows, expected):
    ((lead, outcome),) = outcomes(alert(7), *rows)
    assert lead == expected[0]
    assert outcome.startswith(expected[1])


def test_an_alert_among_rejected_updates():
    rows = [update(5), alert(7), update(9), alert(9), END]
    first, second = outcomes(*rows)
    assert first[1].startswith('2 iterations before the next rejected update')
    assert second[1].startswith('0 iterations before the next rejected')


def test_trouble_that_only_the_log_shows():
    explosion = Rise(1.0, 1e9, 20)
    assert outcomes(alert(7), END, log_rise=explosion) == [
        (13, '13 iterations before the loss exploded')
    ]
    ((lead, _),) = outcomes(alert(7), END, log_nonfinite_since=11)
    assert lead == 4
    ((lead, words),) = outcomes(alert(7), END, unguarded={'default': 'x'})
    assert lead is None
    assert 'not known' in words


def test_the_end_of_an_alert_ends_what_was_told_again_of_its_rule():
    rows = [
        *(alert(7), alert(9, 'headroom'), alert(11, value=2.0)),
        *(alert(11, value=2.0, cleared=20), alert(30), END),
    ]
    ends = [(a.record.iter, a.until) for a in alerts_of(summarize(rows))]
    assert ends == [(7, 20), (9, None), (11, 20), (30, None)]


def test_the_end_of_an_alert_that_a_later_attempt_ran_again(tmp_path):
    rows = [start(), alert(7), alert(7, cleared=20)]
    write_events(tmp_path / '1', rows)
    write_events(tmp_path / '2', [start(15, attempt=2)])
    (row,) = load_run(str(tmp_path)).to_dict()['alerts']
    assert row['until'] is None


def verdict(*rows):
    return judge(summarize([start(), *rows]))


def test_the_verdict_names_the_warning():
    sentence = verdict(alert(4), *streak(27)).sentence
    assert sentence.startswith('sick since iteration 27: ')
    assert '; warned at iteration 4: learning rate; next: ' in sentence
    rows = [alert(4, 'headroom'), alert(5), alert(6), *streak(27)]
    assert (
        "; warned at iteration 4: outputs of 'head', at iteration 5: "
        'learning rate; next: '
    ) in verdict(*rows).sentence


def test_a_warning_before_the_cause_of_the_trouble():
    """Overflows that a lower loss scale mends come before the alert."""
    rows = [update(20), alert(40, 'headroom'), *streak(90)]
    sentence = verdict(*rows).sentence
    assert sentence.startswith('sick since iteration 20: ')
    assert "; warned at iteration 40: outputs of 'head'; " in sentence


@pytest.mark.parametrize(
    'rows',
    [
        [alert(4), alert(4, cleared=20), *streak(27)],
        [*streak(27), alert(28)],
        [alert(4), dict(END, how='crashed', error='OSError: disk')],
    ],
    ids=['over before', 'too late', 'another end'],
)
def test_no_warning_of_the_trouble(rows):
    assert 'warned' not in verdict(*rows).sentence


def test_a_healthy_run_with_alerts():
    assert verdict(alert(4), END).sentence == (
        'healthy: 300 iterations, none rejected; warned at iteration 4 '
        '(learning rate), nothing came of it'
    )
    sentence = verdict(alert(4), alert(9), update(50), END).sentence
    assert (
        'warned 2 times, first at iteration 4 (learning rate), 46 '
        'iterations before the first rejected update'
    ) in sentence


def test_an_alert_that_was_acted_on():
    rows = [alert(4, 'headroom', acted='fp32'), END]
    assert outcomes(*rows) == [(None, 'acted on (fp32), nothing came of it')]


def test_remedies_that_alerts_led_to():
    remedies = [
        dict(remedy(9), id='a-4-alert.1', remedy='lr', module='', value=0.5),
        dict(remedy(9), id='a-4-alert.1', remedy='fp32'),
    ]
    rows = [update(3), alert(4)]
    sentence = verdict(*rows, remedies[0], END).sentence
    assert '; training went on; ' in sentence
    assert sentence.endswith('permanent: learning rates are times 0.5')
    result = verdict(*rows, *remedies, END)
    assert "cured since: 'head' in float32" in result.sentence
    first, second = result.steps[:2]
    assert second.text == "make the remedy permanent: 'head' in float32"
    assert 'alert' in first.detail
    assert 'train CONFIG --cfg-options' in first.code


# Text, JSON, and the data of the page.

HEALTHY = [
    header('stem', 'head'),
    sample(1, [0, 2], [0, 1], update_ratio=0.01, scaled_grad=8.0),
    sample(
        *(51, [0, 6], [0, 1]),
        update_ratio=0.004,
        logits=12.0,
        scaled_grad='inf',
    ),
    sample(101, [1, 5.2], [0, 1], loss_scale=4.0, scaled_grad=16.0),
]
MARGINS = (
    "stability: least headroom 10.0 bits ('head', iteration 51), update ratio "
    'up to 1 %, logits up to 12, loss scale 4 is right '
)


def test_a_healthy_run_shows_its_margins(tmp_path, capsys):
    report = report_of(tmp_path, HEALTHY)
    assert report.margins.startswith(MARGINS)
    assert report.to_dict()['margins'] == report.margins
    data = section(report, 300)
    assert data['margins'] == report.margins
    assert 'loss scale 4 is right' in data['stability']['text']
    print_reports([report])
    assert f'\n{report.margins}\n' in capsys.readouterr().out


def test_a_sick_run_shows_no_margins(tmp_path, capsys):
    report = report_of(tmp_path, HEALTHY, streak(27))
    assert report.margins == ''
    print_reports([report])
    assert 'stability:' not in capsys.readouterr().out
    text = section(report, 300)['stability']['text']
    assert text.startswith('least headroom 10.0 bits')
    assert 'loss scale' not in text


def test_a_run_without_a_monitor(tmp_path, capsys):
    report = report_of(tmp_path)
    assert draw_stability(report) is None
    data = section(report, 300)
    assert (data['stability'], data['margins']) == (None, '')
    assert dict(data['facts'])['alerts'] == '0'
    assert report.to_dict()['alerts'] == []
    print_reports([report])
    out = capsys.readouterr().out
    assert not [word for word in ('stability', 'alert') if word in out]


ROWS = [
    alert(40, 'headroom'),
    *(alert(50), alert(50, cleared=70)),
    *streak(120),
    halt(124),
]


def test_alerts_in_text_and_json_and_on_the_page(tmp_path, capsys):
    report = report_of(tmp_path, HEALTHY, ROWS)
    whole = report.to_dict()
    first, second = whole['alerts']
    assert (first['lead'], first['until']) == (80, None)
    assert (second['lead'], second['until']) == (70, 70)
    assert first['outcome'].startswith('80 iterations before the first ')
    assert first['text'].startswith("outputs of 'head' double every 10 ")
    assert [r['iter'] for r in whole['events'] if r['kind'] == 'alert'] == [
        *(40, 50, 50)
    ]
    print_reports([report])
    out = ' '.join(capsys.readouterr().out.split())
    assert '80 iterations before the first rejected update' in out
    assert out.count("modules=['head']") == 1
    data = section(report, 300)
    events = [row for row in data['events'] if row['kind'] == 'alert']
    assert [row['iter'] for row in events] == [40, 50, 70]
    assert events[0]['text'] == f'{first["outcome"]}: {first["text"]}'
    assert events[0]['code'] == first['config']
    assert events[2]['text'] == (
        'the alert of iteration 50 is over: update ratio'
    )
    assert dict(data['facts'])['alerts'] == '2'


def test_alerts_of_all_rules_are_kept_of_many():
    rows = [alert(i) for i in range(1, 3001)]
    rows.insert(1501, alert(1501, 'attention_logits'))
    kept = alerts_of(summarize([start(), *rows, END]))
    assert 100 < len(kept) < 2500
    assert 'attention_logits' in {item.record.rule for item in kept}


# Real runs.


def monitored(folder, lr):
    hooks = guard_hooks()
    hooks['stability'] = dict(
        type='mmnanguard.StabilityMonitorHook', interval=1
    )
    runner = make_runner(folder, wrapper(lr=lr), default_hooks=hooks)
    with suppress(TrainingHalted):
        runner.train()
    return load_run(str(folder))


def test_a_real_run_that_goes_bad(tmp_path):
    report = monitored(tmp_path, lr=100.0)
    assert (
        '; warned at iteration 2: learning rate; ' in report.verdict.sentence
    )
    first = report.to_dict()['alerts'][0]
    assert first['rule'] == 'update_ratio'
    assert first['lead'] >= 1
    panels = draw_stability(report)['layout']['meta']['panels'].values()
    assert set(panels) == {'headroom', 'outputs', 'update_ratio'}


def test_a_real_healthy_run(tmp_path):
    report = monitored(tmp_path, lr=0.01)
    assert report.verdict.sentence == 'healthy: 10 iterations, none rejected'
    assert report.margins.startswith('stability: update ratio up to ')
    assert len(report.samples.iters) == 10
