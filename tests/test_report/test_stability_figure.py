"""The figure of the samples: heatmap, countdown, limits, lines."""

import json

import pytest
from event_rows import (
    alert,
    halt,
    header,
    sample,
    start,
    streak,
    update,
    write_events,
    write_samples,
)

from mmnanguard.report import load_run
from mmnanguard.report.heatmap import MAX_COLUMNS, MAX_ROWS, draw_heatmap
from mmnanguard.report.page import section
from mmnanguard.report.read_samples import Samples
from mmnanguard.report.stability_figure import draw_stability

pytest.importorskip('plotly')

NUMBERS = [
    header('stem', 'head'),
    sample(1, [0, 2], [0, 1], update_ratio=0.01, scaled_grad=8.0),
    sample(51, [0, 6], [0, 1], update_ratio=0.004, logits=12.0),
    sample(101, [1, 5.2], [0, 1], loss_scale=4.0, scaled_grad=16.0),
]


def report_of(folder, samples=(), rows=()):
    write_events(folder / '1', [start(), *rows])
    write_samples(folder / '1', samples)
    return load_run(str(folder))


def draw(report):
    """Return the traces of each panel, and the layout."""
    figure = draw_stability(report)
    panels = figure['layout']['meta']['panels']
    traces = {}
    for trace in figure['data']:
        key = trace['yaxis'].replace('y', 'yaxis')
        traces.setdefault(panels[key], []).append(trace)
    return traces, figure['layout']


def test_the_heatmap_shows_the_worst_modules_first(tmp_path):
    rows = [
        header('good', 'wide', 'worst', 'gone', 'second'),
        sample(1, [1, 15, 10, None, 2], [0, 2, 3, 4]),
        sample(11, [1, 17, 'inf', None, 9], [0, 2, 3, 4]),
    ]
    traces, layout = draw(report_of(tmp_path, rows))
    heatmap, _ = traces['headroom']
    assert list(heatmap['y']) == ['worst', 'second', 'good', 'wide']
    assert [list(row) for row in heatmap['z']] == [
        [6.0, 0.0],
        [14.0, 7.0],
        [15.0, 15.0],
        [1.0, -1.0],
    ]
    assert list(heatmap['x']) == [1, 11]
    assert (heatmap['zmin'], heatmap['zmax']) == (0, 12)
    assert layout['yaxis']['autorange'] == 'reversed'


def test_cells_that_are_not_float16_are_hatched(tmp_path):
    """Fp32ModulesHook puts the head in float32 at iteration 21."""
    rows = [header('head', 'norm')]
    for iter_, half in ((1, [0]), (11, [0]), (21, []), (31, []), (41, [0])):
        rows.append(sample(iter_, [3, 1], half))
    traces, _ = draw(report_of(tmp_path, rows))
    _, bars = traces['headroom']
    assert list(bars['y']) == ['head', 'norm']
    assert list(bars['base']) == [16, -4]
    assert list(bars['x']) == [20, 50]
    assert bars['marker']['pattern']['shape']


def test_the_heatmap_of_a_long_run_is_small():
    samples = Samples()
    modules = [f'm{i}' for i in range(100)]
    for iter_ in range(1, 20_001, 10):
        power = 150 if iter_ == 5001 else 50
        outputs = [50] * 99 + [power]
        row = dict(iter=iter_, outputs=outputs, float16=list(range(100)))
        samples.add(row, modules)
    heatmap, *_ = draw_heatmap(samples, 20_000).traces
    assert len(heatmap['y']) == MAX_ROWS
    assert heatmap['y'][0] == 'm99'
    assert len(heatmap['x']) <= MAX_COLUMNS + 1
    assert min(heatmap['z'][0]) == 1.0
    assert list(heatmap['x']) == sorted(set(heatmap['x']))


def test_a_column_with_float16_and_float32(tmp_path):
    rows = [
        *(header('head'), sample(996, [4], [0]), sample(997, [10])),
        *(sample(998, [5], [0]), sample(999, [1], [0])),
    ]
    traces, _ = draw(report_of(tmp_path, rows))
    (heatmap,) = traces['headroom']
    assert [list(row) for row in heatmap['z']] == [[11.0]]


def test_names_of_modules_are_short_and_harmless(tmp_path):
    stem = 'backbone.stages.1.blocks'
    names = [f'{stem}.{i}.attn.w_msa' for i in (0, 1)]
    names += ['x' * 60, '<b>', f'a.{stem}.0.attn.w_msa']
    rows = [header(*names), sample(1, [1] * 5, [0, 1, 2, 3, 4])]
    traces, layout = draw(report_of(tmp_path, rows))
    heatmap, *_ = traces['headroom']
    assert len(set(heatmap['y'])) == 5
    assert '&lt;b&gt;' in heatmap['y']
    labels = layout['yaxis']['ticktext']
    assert labels[0] == '\u20261.blocks.0.attn.w_msa'
    assert max(map(len, labels)) <= 24


def test_the_countdown_as_it_was_told(tmp_path):
    rows = [header('head'), *(sample(i, [i / 10], [0]) for i in range(1, 99))]
    report = report_of(tmp_path, rows, [alert(80, 'headroom')])
    traces, layout = draw(report)
    outputs, dashed, limit = traces['outputs']
    assert outputs['name'] == '&#x27;head&#x27;'
    assert outputs['y'][79] == 256
    assert list(dashed['x']) == [80, 160]
    assert list(dashed['y']) == [256, 65504]
    assert dashed['line']['dash'] == 'dash'
    assert 'told at iteration 80' in dashed['hovertemplate']
    assert set(limit['y']) == {65504}
    assert layout['yaxis2']['type'] == 'log'


@pytest.mark.parametrize(
    'odd',
    [
        dict(doubles=None),
        dict(doubles=0.0),
        dict(doubles='nan'),
        dict(doubles=1e300),
        dict(value=0.0),
        dict(value='inf'),
        dict(limit=1.0),
        dict(limit='nan'),
    ],
    ids=str,
)
def test_an_alert_without_a_countdown(tmp_path, odd):
    rows = [{**alert(80, 'headroom'), **odd}]
    traces, _ = draw(report_of(tmp_path, NUMBERS, rows))
    assert len(traces['outputs']) == 2


def test_limits_of_alerts(tmp_path):
    logits = alert(51, 'attention_logits', module='a', value=120.0, limit=1e2)
    rows = [alert(1, limit=0.02), alert(9, limit=0.02), logits]
    traces, layout = draw(report_of(tmp_path, NUMBERS, rows))
    ratio, limit = traces['update_ratio']
    assert list(ratio['y']) == [0.01, 0.004]
    assert limit['name'] == 'limit 2 %, passed at iteration 1'
    assert list(limit['y']) == [0.02, 0.02]
    (_, limit) = traces['logits']
    assert set(limit['y']) == {100}
    assert limit['legend'] != ratio['legend']
    assert {ratio['legend'], limit['legend']} <= set(layout)


def test_lines_at_alerts_and_at_what_came_of_them(tmp_path):
    rows = [
        *(update(20), alert(40), alert(60, 'headroom')),
        *(update(80), *streak(120), halt(124)),
    ]
    _, layout = draw(report_of(tmp_path, NUMBERS, rows))
    styles = {shape['x0']: shape['line']['dash'] for shape in layout['shapes']}
    halts = styles.pop(124)
    assert halts == 'dot'
    assert styles == {40: 'dot', 60: 'dot', 80: 'dash', 120: 'solid'}
    words = {note['x']: note['text'] for note in layout['annotations']}
    assert words == {40: 'alert', 80: 'rejected', 120: 'loss not finite'}


def test_samples_of_a_compiled_model(tmp_path):
    """No module was measured."""
    rows = [header(), sample(1, update_ratio=0.01), sample(9, logits=2.0)]
    report = report_of(tmp_path, rows)
    traces, _ = draw(report)
    assert list(traces) == ['update_ratio', 'logits']
    assert (
        report.margins == 'stability: update ratio up to 1 %, logits up to 2'
    )


def test_samples_without_a_number_to_draw(tmp_path):
    report = report_of(tmp_path, [header(), sample(1), sample(9)])
    assert draw_stability(report) is None
    assert report.margins == ''


def test_numbers_that_are_not_finite(tmp_path):
    rows = [
        header('head'),
        sample(1, ['inf'], [0], update_ratio='inf', logits='inf'),
        sample(2, ['inf'], [0], scaled_grad='inf', loss_scale=0.0),
    ]
    report = report_of(tmp_path, rows)
    traces, _ = draw(report)
    assert list(traces['update_ratio'][0]['y']) == [None]
    assert json.dumps(section(report, 2), default=str)
    assert report.margins == (
        "stability: least headroom 0.0 bits ('head', iteration 1)"
    )
