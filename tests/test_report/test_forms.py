"""The report as text, as JSON, and as a page, on files with odd content."""

import json
import re
import subprocess
import sys
from array import array
from datetime import datetime, timezone
from pathlib import Path

import pytest
from event_rows import (
    audit,
    autopsy,
    bad_input,
    dump,
    halt,
    joined,
    remedy,
    rollback,
    routine,
    start,
    update,
    write_events,
    write_scalars,
)
from laptop import laptop

import mmnanguard
from mmnanguard.core import GuardConfigError
from mmnanguard.core.rows.json_numbers import to_json
from mmnanguard.report import RunReport, load_run, print_reports, write_page
from mmnanguard.report.assessment import judge
from mmnanguard.report.page import section
from mmnanguard.report.read_scalars import Curve
from mmnanguard.report.summarize import summarize
from mmnanguard.report.summary import Summary

pytest.importorskip('plotly')
pytest.importorskip('rich')

EVIL = '</script><script>alert(1)</script><b>&\x1b[31m\u2028"\''
ROWS = [
    start(),
    routine(1),
    *(update(5, 'loss_nonfinite', samples=('a.jpg', EVIL)), autopsy(5, EVIL)),
    *(dump(5, f'/x/{EVIL}.pt'), remedy(5, 'head')),
    *(update(7, 'input_nonfinite'), bad_input(7, EVIL)),
    *(update(9, name=EVIL), audit(9, EVIL)),
    *(update(11, action='rollback', name='neck.bias'), rollback(11)),
    joined(12, 'mystery', what=EVIL),
    *(update(13, action='halt', name='neck.bias'), halt(13)),
]
SCALARS = [
    dict(iter=i, loss=1 / i, grad_norm=float(i), lr=0.1, step=i)
    for i in range(1, 14)
]


WRITTEN = datetime(2026, 2, 11, tzinfo=timezone.utc)


@pytest.fixture
def work_dir(tmp_path):
    write_events(tmp_path / '1', ROWS)
    write_scalars(tmp_path / '1', SCALARS)
    return tmp_path


@pytest.fixture
def report(work_dir):
    return load_run(str(work_dir))


def test_all_is_shown_in_the_terminal(report, capsys):
    print_reports([report])
    output = capsys.readouterr().out
    verdict = report.verdict
    lines = output.splitlines()
    assert f'Sick since iteration 5: {verdict.headline}' in lines
    assert f'next: {verdict.action}' in lines
    for kind in report.summary.num_kinds:
        assert kind == 'update' or re.search(rf'│ {kind} +│', output), kind
    for name in ('neck.bias', 'aten.mm', 'iteration 13 of 1,000, halted'):
        assert name in output
    assert "default_hooks=dict(fp32=dict(modules=['head']))" in output
    # Neither colors nor what a name holds steer a pipe.
    assert '\x1b' not in output
    assert r'\x1b[31m' in output


def test_many_rows_are_counted(tmp_path, capsys):
    rows = [start(), *(dump(i, f'/x/{i}.pt') for i in range(1, 31))]
    write_events(tmp_path / '1', rows)
    print_reports([load_run(str(tmp_path))])
    assert 'What followed, 11 more of them' in capsys.readouterr().out


def test_json_is_strict(report):
    def refuse(name):
        raise AssertionError(name)

    content = json.loads(to_json(report.to_dict()), parse_constant=refuse)
    assert content['healthy'] is False
    assert (content['badge'], content['state']) == ('Sick', 'halted')
    assert content['headline'] in content['verdict']
    assert content['next'] == content['steps'][0]['text']
    assert content['causes']['loss_nonfinite'] == 1
    assert content['culprits']['modules'][0]['name'] == EVIL
    assert len(content['events']) == len(ROWS)
    assert content['events'][1]['text'].startswith('gradient of')
    assert content['events'][1]['grad_norm'] == 'nan'


def page_data(text):
    (data,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', text, re.S
    )
    return json.loads(data)


def test_a_page_holds_no_markup_of_the_files(report, tmp_path):
    path = tmp_path / 'page.html'
    write_page([report], path)
    text = path.read_text(encoding='utf-8')
    assert 'alert(1)<' not in text
    (run,) = page_data(text)['runs']
    assert EVIL in run['names']  # as data, which scripts only show as text
    assert [event['kind'] for event in run['events']] == [
        row['kind'] for row in ROWS
    ]
    for trace in run['figure']['data']:
        assert '<script' not in json.dumps([trace['name'], trace.get('y')])
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)=', text)
    assert "content=\"default-src 'none';" in text
    assert not list(tmp_path.glob('*.partial'))


def test_a_title_is_no_markup(tmp_path):
    folder = tmp_path / '<script>alert(1)<'
    write_events(folder / '1', ROWS)
    write_page([load_run(str(folder))], tmp_path / 'page.html')
    text = (tmp_path / 'page.html').read_text(encoding='utf-8')
    assert '<title>&lt;script&gt;alert(1)&lt; (a): ' in text
    assert 'alert(1)<' not in text


def test_the_page_of_half_a_run_is_never_seen(report, tmp_path, monkeypatch):
    path = tmp_path / 'page.html'
    path.write_text('the one before')
    monkeypatch.setattr('plotly.offline.get_plotlyjs', lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_page([report], path)
    assert path.read_text() == 'the one before'


def test_events_alone_have_curves(tmp_path):
    path = write_events(tmp_path, ROWS)
    report = load_run(str(path))
    write_page([report], tmp_path / 'page.html')
    (run,) = page_data((tmp_path / 'page.html').read_text())['runs']
    layout = run['figure']['layout']
    titles = [
        axis['title']['text']
        for key, axis in layout.items()
        if key.startswith('yaxis')
    ]
    assert titles == [
        *('loss', 'loss scale', 'learning rate'),  # no norm is finite
        *('rejected', 'what followed'),
    ]
    lines = [t for t in run['figure']['data'] if 'lines' in t.get('mode', '')]
    assert [line['name'] for line in lines] == ['loss scale', 'learning rate']
    assert lines[0]['y'] == [512] * 6


@pytest.mark.parametrize('is_gone', [True, False])
def test_rows_that_lack_a_key(is_gone):
    """Rows of another version or of an edited file cause no traceback."""
    rows = []
    for row in ROWS:
        rows += [{**row, key: None} for key in row]
    rows.append(dict(update(3), iter=None, id='alone'))
    if is_gone:
        rows = [
            {k: v for k, v in row.items() if v is not None} for row in rows
        ]
    summary = summarize([start(), *rows])
    report = RunReport('x', summary, {}, judge(summary), WRITTEN)
    to_json(section(report, summary.last_iter))
    to_json(report.to_dict())
    print_reports([report])


@pytest.mark.parametrize(
    ('last', 'state'), [(9, 'finished'), (3, 'unfinished')]
)
def test_a_short_run_that_logs_seldom_can_be_finished(last, state):
    """Iteration 10 of 10 has no scalar if there is one every 3 iterations."""
    summary = Summary(run='r', max_iters=10, last_iter=last)
    iters = array('q', range(3, last + 1, 3))
    curves = {'loss': Curve(iters, array('d', [0.5] * len(iters)))}
    report = RunReport('x', summary, curves, judge(summary), WRITTEN)
    assert report.state == state


@pytest.mark.parametrize('value', [0.0, -1.0, 1e-30, 1e38, float('nan')])
def test_curves_of_any_value(tmp_path, value):
    write_events(tmp_path / '1', ROWS)
    keys = ('loss', 'grad_norm', 'lr', 'guard/amp_scale')
    scalars = [dict(dict.fromkeys(keys, value), iter=i) for i in (1, 2)]
    write_scalars(tmp_path / '1', scalars)
    write_page([load_run(str(tmp_path))], tmp_path / 'page.html')


def test_other_packages_are_named_where_they_lack(report, tmp_path):
    for package, call in (
        ('plotly', lambda: write_page([report], tmp_path / 'page.html')),
        ('rich', lambda: print_reports([report])),
    ):
        hidden = {
            name: None
            for name in [*sys.modules, package]
            if name.split('.')[0] == package
        }
        with pytest.MonkeyPatch.context() as patch:
            for name in hidden:
                patch.setitem(sys.modules, name, None)
            message = f'{package}, .*pip install {package}'
            with pytest.raises(GuardConfigError, match=message):
                call()


TOOL = Path(mmnanguard.__file__).parents[1] / 'tools' / 'report.py'


@pytest.mark.parametrize(
    ('form', 'without'),
    [([], []), (['--text'], ['plotly']), (['--json'], ['plotly', 'rich'])],
)
def test_it_runs_on_a_laptop(work_dir, form, without):
    command = laptop(TOOL, work_dir, *form, without=without)
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 1, done.stderr.decode()
    assert b'sick since iteration 5' in done.stdout.lower()
    assert (work_dir / 'nanguard_report.html').exists() == (not form)
