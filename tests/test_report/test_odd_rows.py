"""A row that is odd costs itself, and never the report."""

import copy
import json
import random

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
    start,
    update,
    write_events,
    write_scalars,
)

from mmnanguard.core.rows.json_numbers import to_json
from mmnanguard.report import load_run, print_reports, write_page
from mmnanguard.report.parse_row import parse

SPIKE = dict(what='loss', value=1.0, limit=2.0, mean=1.0)
ROWS = [
    start(),
    update(3, name='head.bias', samples=('a', 'b')),
    *(autopsy(3), dump(3, needs=('checkpoint', 'config')), remedy(3)),
    *(bad_input(3, 'a'), rollback(9), audit(12)),
    update(20, 'spike', spike=SPIKE),
    update(30, 'divergence', action='rollback'),
    *(halt(30), joined(3, 'mystery', what=7), start(25, attempt=2)),
    update(40, 'loss_nonfinite', samples=('a',)),
]
ODD = [
    *(None, True, -1, 0, 1.5, 10**30, float('inf'), float('nan')),
    *('x', '', 'nan', '\x1b[31m', '\ud800', [], {}, [1], ['a'], [[]], [{}]),
    *([None], {'a': 1}, {'a': []}, {'name': 3}, [{'name': 3}]),
    *([{'name': 'a'}], {'before': 'x', 'after': []}, {'left_out': 3}),
    {'what': 1, 'value': 'x', 'limit': None, 'mean': {}},
]
KEYS = ['iter', 'params', 'samples', 'tensors', 'num_rollbacks', 'needs']


def mutated(row, rng):
    """Return the row with a few keys removed, or replaced by odd values."""
    row = copy.deepcopy(row)
    for _ in range(rng.choice([1, 1, 2, 4])):
        key = rng.choice([*row, *KEYS])
        place = row
        # Half of the time inside of a nested list or dict.
        if isinstance(row.get(key), list) and row[key]:
            place = rng.choice([row, row[key][0]])
        elif isinstance(row.get(key), dict):
            place = rng.choice([row, row[key]])
        if place is not row and isinstance(place, dict) and place:
            key = rng.choice(list(place))
        if not isinstance(place, dict):
            place = row
        if rng.random() < 0.2:
            place.pop(key, None)
        else:
            place[key] = copy.deepcopy(rng.choice(ODD))
    return row


@pytest.mark.parametrize('seed', range(100))
def test_mutated_rows(seed, tmp_path, capsys):
    rng = random.Random(seed)
    rows = list(ROWS)
    for place in rng.sample(range(len(ROWS)), 5):
        rows[place] = mutated(ROWS[place], rng)
    write_events(tmp_path / '20260101_000000', rows)
    report = load_run(str(tmp_path))
    to_json(report.to_dict())
    print_reports([report])
    assert '\x1b' not in capsys.readouterr().out
    if seed % 10 == 0:
        write_page([report], tmp_path / 'page.html')


DEEP = '[' * 900 + ']' * 900
LINES = {
    'deeper than Python can read': f'{{"kind": "x", "a": {"[" * 10**5}',
    'as deep as Python can read': f'{{"kind": "x", "iter": 5, "a": {DEEP}}}',
    'a list': '["start", "run", "attempt"]',
    'a huge number': f'{{"kind": "update", "iter": {"9" * 6000}}}',
    'no UTF-8': '{"kind": "\udcff"}',
    'the run is null': '{"kind": "start", "run": null, "attempt": null}',
    'the attempt is a text': '{"kind": "start", "run": "a", "attempt": "2"}',
}


@pytest.mark.parametrize(('depth', 'is_row'), [(40, True), (200, False)])
def test_a_deep_row_is_left_out(depth, is_row):
    """Functions that call themselves could not follow it."""
    line = f'{{"kind": "x", "a": {"[" * depth}{"]" * depth}}}'
    assert (parse(line.encode()) is not None) == is_row


@pytest.mark.parametrize('line', LINES.values(), ids=LINES)
def test_odd_line(line, tmp_path, capsys):
    folder = tmp_path / '20260101_000000'
    path = write_events(folder, [start(), update(300)])
    with path.open('ab') as file:
        file.write(line.encode('utf-8', 'surrogateescape') + b'\n')
    write_events(folder, [update(310)])
    report = load_run(str(tmp_path))
    assert report.summary.num_skipped == 2
    to_json(report.to_dict())
    print_reports([report])


def test_odd_scalars(tmp_path):
    folder = tmp_path / '20260101_000000'
    write_events(folder, [start(), update(300)])
    rows = [
        *(dict(iter=iter_, loss=1.0) for iter_ in (None, True, 10**30, 'x')),
        dict(iter=1, loss=10**400),
        dict(iter=2, loss=[1]),
        dict(iter=3, loss=2.0),
    ]
    path = write_scalars(folder, rows)
    with path.open('a') as file:
        file.write('[' * 10**5 + '\n')
    report = load_run(str(tmp_path))
    assert list(report.curves['loss'].iters) == [3]
    write_page([report], tmp_path / 'page.html')
    assert json.loads(to_json(report.to_dict()))
