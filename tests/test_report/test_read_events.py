"""The attempts of a run are read as one run: a table of their rows."""

import json
import logging
import random

import pytest

from mmnanguard.core import Action, Cause, GuardConfigError, GuardEvent
from mmnanguard.report import read_events


def start(attempt, iter_, run='a'):
    return dict(kind='start', run=run, attempt=attempt, iter=iter_)


def update(attempt, iter_, run='a'):
    return GuardEvent(
        action=Action.SKIP,
        cause=Cause.GRAD_NONFINITE,
        iter=iter_,
        run=run,
        attempt=attempt,
        id=f'{run}-{iter_}',
    ).to_row()


def joined(iter_, kind='autopsy', run='a'):
    """Return a row that has neither run nor attempt nor iteration."""
    return dict(kind=kind, id=f'{run}-{iter_}')


def write(work_dir, folders, end=''):
    for folder, rows in folders.items():
        path = work_dir / folder / 'nanguard' / 'events.jsonl'
        path.parent.mkdir(parents=True)
        lines = [json.dumps(row, ensure_ascii=False) + '\n' for row in rows]
        path.write_text(''.join(lines) + end, encoding='utf-8')


def read_short(work_dir, **keys):
    """Return the rows in short: their kind ('s' for a start, 'u' for an
    update) and their iteration.
    """
    short = []
    for row in read_events(str(work_dir), **keys):
        iter_ = row['id'].split('-')[1] if 'id' in row else row['iter']
        mark = dict(start='s', update='u').get(row['kind'], row['kind'])
        short.append(f'{mark}{iter_}')
    return ' '.join(short)


TABLE = {
    'one attempt': (
        {'1': [start(1, 1), update(1, 3), joined(3), update(1, 5)]},
        's1 u3 autopsy3 u5',
    ),
    'nothing was run again': (
        {'1': [start(1, 1), update(1, 4)], '2': [start(2, 5), update(2, 5)]},
        's1 u4 s5 u5',
    ),
    'the first iteration that is run again': (
        {'1': [start(1, 1), update(1, 5)], '2': [start(2, 5), update(2, 5)]},
        's1 s5 u5',
    ),
    'what was told of it goes too': (
        {
            '1': [
                *(start(1, 1), update(1, 3), joined(3)),
                *(update(1, 7), joined(7), joined(7, 'dump')),
            ],
            '2': [start(2, 5), update(2, 7), joined(7)],
        },
        's1 u3 autopsy3 s5 u7 autopsy7',
    ),
    'a row before the update that it is joined to': (
        {'1': [start(1, 1), joined(7), update(1, 7)], '2': [start(2, 5)]},
        's1 s5',
    ),
    'other rows with an iteration': (
        {
            '1': [
                start(1, 1),
                dict(start(1, 4), kind='audit', id='a-4-audit.1'),
                dict(kind='halt', id='a-9', iter=9),
            ],
            '2': [start(2, 5)],
        },
        's1 audit4 s5',
    ),
    'back from the third to before the second': (
        {
            '1': [start(1, 1), update(1, 3), update(1, 9)],
            '2': [start(2, 9), update(2, 9), update(2, 11)],
            '3': [start(3, 5), update(3, 11)],
        },
        's1 u3 s9 s5 u11',
    ),
    'a later one that died at once': (
        {
            '1': [start(1, 1), update(1, 3), update(1, 9)],
            '2': [start(2, 5)],
            '3': [start(3, 7), update(3, 9)],
        },
        's1 u3 s5 s7 u9',
    ),
    'two attempts in one folder': (
        {
            '1': [
                *(start(1, 1), update(1, 3), update(1, 7), joined(7)),
                *(start(2, 5), update(2, 7), joined(7)),
            ]
        },
        's1 u3 s5 u7 autopsy7',
    ),
    'folders that do not sort as attempts do': (
        {'1': [start(2, 5), update(2, 7)], '2': [start(1, 1), update(1, 7)]},
        's1 s5 u7',
    ),
    'a start that a full disk lost': (
        {'1': [start(1, 1), update(1, 3)], '2': [joined(5), update(2, 5)]},
        's1 u3 autopsy5 u5',
    ),
    'the newest of several runs': (
        {
            '1': [start(1, 1, 'b'), update(1, 3, 'b')],
            '2': [start(1, 1), update(1, 4)],
        },
        's1 u4',
    ),
    'nothing': ({}, ''),
    'an empty file': ({'1': []}, ''),
}


@pytest.mark.parametrize(
    ('folders', 'expected'), TABLE.values(), ids=TABLE.keys()
)
def test_attempts_are_one(tmp_path, folders, expected, caplog):
    write(tmp_path, folders)
    assert read_short(tmp_path) == expected
    assert caplog.text == ''


def test_a_run_can_be_chosen(tmp_path):
    write(
        tmp_path,
        {
            '1': [start(1, 1, 'b'), update(1, 3, 'b')],
            '2': [start(1, 1), update(1, 4)],
            '3': [start(2, 2, 'b'), update(2, 3, 'b')],
        },
    )
    assert read_short(tmp_path) == read_short(tmp_path, run='b') == 's1 s2 u3'
    assert read_short(tmp_path, run='a') == 's1 u4'
    with pytest.raises(GuardConfigError, match="'c'; known runs: 'b', 'a'"):
        read_events(str(tmp_path), run='c')
    with pytest.raises(GuardConfigError, match='known runs: none'):
        read_events(str(tmp_path / 'empty'), run='c')


def test_a_line_cut_at_any_byte_is_left_out(tmp_path, caplog):
    """The sample name is not ASCII and may be cut within a character."""
    last = dict(update(1, 4), samples=['train/ŝ\u2028漢.jpg'])
    whole = json.dumps(last, ensure_ascii=False).encode()
    write(tmp_path, {'1': [start(1, 1), update(1, 3)]})
    path = tmp_path / '1' / 'nanguard' / 'events.jsonl'
    before = path.read_bytes()
    for size in range(1, len(whole)):
        path.write_bytes(before + whole[:size])
        caplog.clear()
        assert read_short(tmp_path) == 's1 u3'
        assert 'line 3, half-written' in caplog.text
    # Only the line's end is missing; then another attempt in this folder.
    path.write_bytes(before + whole)
    assert read_events(str(tmp_path))[-1] == last
    path.write_bytes(before + whole[:9] + b'\n' + json_line(start(2, 4)))
    assert read_short(tmp_path) == 's1 u3 s4'


def json_line(row):
    return json.dumps(row).encode() + b'\n'


def test_rows_of_no_known_run_are_left_out(tmp_path, caplog):
    write(tmp_path, {'1': [joined(3)]}, end='17\n')
    with caplog.at_level(logging.WARNING, 'mmnanguard'):
        assert read_events(str(tmp_path)) == []
    assert 'line 2, half-written or damaged, is left out' in caplog.text
    assert 'no row names its run' in caplog.text


@pytest.mark.parametrize('seed', range(50))
def test_random_kills(tmp_path, seed):
    """Kills at random times do not change the rows that are read."""
    rng = random.Random(seed)
    faults = sorted(rng.sample(range(1, 41), 8))
    folders, attempt, checkpoint = {}, 0, 0
    while checkpoint < 40:
        attempt += 1
        end = rng.randint(checkpoint, 40)
        rows = [start(attempt, checkpoint + 1)]
        for iter_ in faults:
            if checkpoint < iter_ <= end:
                rows += [update(attempt, iter_), joined(iter_)]
        folder = str(rng.randint(0, 1) + 2 * attempt // 3)
        folders.setdefault(folder.zfill(4), []).extend(rows)
        checkpoint = max(checkpoint, end // 5 * 5)
    write(tmp_path, folders)
    without_starts = [
        part for part in read_short(tmp_path).split() if part[0] != 's'
    ]
    expected = []
    for fault in faults:
        expected += [f'u{fault}', f'autopsy{fault}']
    assert without_starts == expected
