"""The curves show the run's scalars, on axes that can be read."""

import math
import re

from event_rows import remedy, start, update, write_events, write_scalars

from mmnanguard.report import load_run
from mmnanguard.report.figure import draw
from mmnanguard.report.page import read_script
from mmnanguard.report.panels import PANELS
from mmnanguard.report.traces import traces_of


def figure(folder, scalars, rows=()):
    write_events(folder / '1', [start(), *rows])
    write_scalars(
        folder / '1', [dict(row, iter=i) for i, row in enumerate(scalars, 1)]
    )
    return draw(load_run(str(folder)))


def curves(drawn):
    lines = [t for t in drawn['data'] if 'lines' in t.get('mode', '')]
    return {trace['name']: list(trace['y']) for trace in lines}


def test_the_learning_rate_that_was_used(tmp_path):
    """A rollback lowers the learning rate without the schedule."""
    factor = {'guard/lr_factor': 0.5}
    scalars = [
        *(dict(lr=1.0), dict(lr=2.0), dict(lr=4.0, **factor)),
        *(dict(lr=4.0), dict(lr=8.0, **{'guard/lr_factor': 1.0})),
    ]
    drawn = figure(tmp_path, scalars)
    assert curves(drawn) == {'lr x guard/lr_factor': [1, 2, 2, 2, 8]}
    assert all(trace['showlegend'] for trace in drawn['data'][:1])


def test_each_optimizer_has_its_factor(tmp_path):
    row = {'gen.lr': 1.0, 'disc.lr': 1.0, 'guard/gen/lr_factor': 0.1}
    drawn = figure(tmp_path, [row, row])
    assert curves(drawn) == {
        'gen.lr x guard/gen/lr_factor': [0.1, 0.1],
        'disc.lr': [1, 1],
    }
    assert [trace['showlegend'] for trace in drawn['data'][:2]] == [
        False,
        True,
    ]


def run_with_all_panels(folder):
    write_events(folder / '1', [start(), update(2, name='head'), remedy(2)])
    row = {'loss': 1.0, 'grad_norm': 1.0, 'lr': 0.1, 'guard/amp_scale': 8.0}
    scalars = [dict(row, iter=iter_) for iter_ in (1, 2)]
    scalars.append(dict(accuracy=0.5, time=1.0, step=1))
    write_scalars(folder / '1', scalars)
    return load_run(str(folder))


def test_a_title_stands_in_one_place(tmp_path, monkeypatch):
    """A renamed title changes the text beside an axis and nothing else."""
    run = run_with_all_panels(tmp_path)
    before = draw(run)
    assert list(traces_of(run, 2)) == list(PANELS)
    for name, panel in PANELS.items():
        renamed = panel._replace(title=f'renamed {name}')
        monkeypatch.setitem(PANELS, name, renamed)
    after = draw(run)
    panels = after['layout']['meta']['panels']
    assert list(panels.values()) == list(PANELS)
    for axis, name in panels.items():
        title = after['layout'][axis]['title']
        assert title['text'] == f'renamed {name}'
        title['text'] = before['layout'][axis]['title']['text']
    assert after == before


def test_no_panel_is_empty(tmp_path):
    """A curve that is never finite gets no panel, nor do start and end."""
    finished = dict(schema=1, kind='end', how='finished', iter=2)
    row = dict(loss=1.0, grad_norm=math.nan)
    drawn = figure(tmp_path, [row, row], [finished])
    assert list(drawn['layout']['meta']['panels'].values()) == ['loss']
    assert figure(tmp_path / 'other', [], [finished]) is None


def test_a_dot_is_at_the_exact_value(tmp_path):
    """A triangle at the top says that a value is far off."""
    losses = [3.5, -0.5, 90.0, math.nan]
    rows = [update(i, loss=x) for i, x in enumerate(losses, 1)]
    drawn = figure(tmp_path, [dict(loss=1.0), dict(loss=2.0)], rows)
    (dots,) = (
        t
        for t in drawn['data']
        if t['name'] == 'grad_nonfinite' and t['mode'] == 'markers'
    )
    assert list(dots['y']) == [3.5, 3.5, 3.5, 3.5]
    triangle = 'triangle-up'
    assert dots['marker']['symbol'] == ['circle', *[triangle] * 3]


def test_the_axis_begins_where_the_run_does(tmp_path):
    write_events(tmp_path / '1', [start(5001), update(5003, loss=1.0)])
    run = load_run(str(tmp_path))
    drawn = draw(run, begin=run.summary.first_iter - 1)
    low, high = drawn['layout']['xaxis']['range']
    assert low == 5000
    assert 5003 < high < 5010
    (bars,) = (t for t in drawn['data'] if t['type'] == 'bar')
    assert list(bars['customdata'][:2]) == ['5,001 to 5,001', '5,002 to 5,002']
    assert list(bars['y']) == [0, 0, 1]


def test_the_page_knows_panels_by_identifier_only():
    script = read_script()
    for name, panel in PANELS.items():
        if panel.title != name:
            assert panel.title not in script.lower(), panel.title
    compared = re.findall(r"panel [!=]== '(\w+)'", script)
    compared += re.findall(r"meta\.panels\.\w+ === '(\w+)'", script)
    assert set(compared) == {'rejected', 'loss_scale', 'loss'}
    shown = re.findall(r'data\.titles\.(\w+)', script)
    (listed,) = re.findall(r'\[([^]]*)\]\.map\(\(panel\)', script)
    shown += re.findall(r"'(\w+)'", listed)
    shown += re.findall(r"number\('(\w+)'", script)
    shown += re.findall(r"FOLLOWED = '(\w+)'", script)
    assert {*compared, *shown} <= set(PANELS)
    assert 'title.text' not in script
