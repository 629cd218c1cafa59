"""docs/en/events.md shows the rows that runs write."""

import json
import re
from pathlib import Path

import pytest
from docs_shell import FOLDER, ROOT, all_blocks, blocks, commands, run
from event_rows import alert

from mmnanguard.core import Cause
from mmnanguard.core.rows.bypass_row import BypassRow
from mmnanguard.core.rows.end_row import EndRow
from mmnanguard.core.stability.sample import Largest, Sample
from mmnanguard.hooks.stability.sample_file import SampleFile

PAGE = ROOT / 'docs' / 'en' / 'events.md'
TEXT = PAGE.read_text()
KINDS = {
    'start',
    'update',
    'autopsy',
    'dump',
    'remedy',
    'input',
    'rollback',
    'audit',
    'alert',
    'bypass',
    'halt',
    'end',
}


def refuse(number):
    raise ValueError(f'{number} is not JSON')


def read(text):
    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope='module')
def rows():
    """Return the first row of each kind in the two runs of the page."""
    first_rows = {}
    first = next(b for b in blocks(PAGE) if b.language == 'bash')
    for command in commands(first.text):
        run(command)
    for name in ('tour_fp16', 'plain_fp32'):
        folder = Path(FOLDER.name, 'work_dirs', name)
        for file in folder.glob('*/nanguard/events.jsonl'):
            for row in map(read, file.read_text().splitlines()):
                first_rows.setdefault(row['kind'], row)
    # Both runs are halted, and then there is no other end.
    first_rows['bypass'] = BypassRow(9, 'default', False, 'THESE').to_row()
    losses = dict(default=1.0)
    # No tensor of the two runs grows towards the limit of its dtype.
    first_rows['alert'] = alert(170, 'headroom')
    end = EndRow('crashed', 61, 'RuntimeError: ...', losses, losses)
    first_rows['end'] = read(json.dumps(end.to_row()))
    return first_rows


def test_all_kinds_are_written_and_shown(rows):
    assert set(rows) == KINDS
    shown = [b.section for b in blocks(PAGE) if b.language == 'json']
    assert sorted(shown) == sorted(KINDS)


def shape(value):
    """Return the types that a value is made of; numbers written as strings
    count as numbers.
    """
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    if value in ('nan', 'inf', '-inf'):
        return 'float'
    return type(value).__name__


@pytest.mark.parametrize('kind', sorted(KINDS))
def test_the_example_is_such_a_row(kind, rows):
    (block,) = (
        b for b in blocks(PAGE) if b.language == 'json' and b.section == kind
    )
    shown = read(block.text)
    assert set(shown) == set(rows[kind])
    assert shape(shown) == shape(rows[kind])


@pytest.mark.parametrize('kind', sorted(KINDS))
def test_each_key_is_explained(kind, rows):
    (body,) = re.findall(rf'^## {kind}\n(.*?)(?=^#+ )', TEXT, re.M | re.S)
    explained = []
    for cell in re.findall(r'^\| (`.*?) \|', body, re.M):
        explained += re.findall(r'`(\w+)`', cell)
    shared = {'schema', 'kind', 'id'} & set(rows[kind])
    assert sorted([*explained, *shared]) == sorted(rows[kind])


def test_each_cause_is_explained_in_order():
    body = TEXT.split('### Causes')[1].split('\n## ')[0]
    explained = re.findall(r'^\| `(\w+)` \|', body, re.M)
    assert explained == [
        cause.value for cause in Cause if cause is not Cause.NONE
    ]


@pytest.mark.parametrize('block', all_blocks('json'), ids=str)
def test_json_anywhere_is_strict_and_has_known_keys(block, rows):
    row = read(block.text)
    assert set(row) <= set(rows[row['kind']])


def test_samples_are_shown_and_explained(tmp_path):
    outputs = {'backbone': Largest(2.0, 'float16')}
    file = SampleFile(tmp_path / 'stability.jsonl')
    file.add(Sample(170, outputs, update_ratio=0.1, grads={'head': 1.0}))
    written = (tmp_path / 'stability.jsonl').read_text().splitlines()
    (block,) = (b for b in blocks(PAGE) if b.section == 'The samples')
    head, _, sample = block.text.partition('\n')
    for shown, line in zip((head, sample), written):
        assert list(read(shown)) == list(read(line))
    body = TEXT.split('## The samples')[1].split('\n## ')[0]
    explained = []
    for cell in re.findall(r'^\| (`.*?) \|', body, re.M):
        explained += re.findall(r'`(\w+)`', cell)
    assert explained == list(read(sample))


def test_each_scalar_is_explained(rows):
    """The page explains the scalars of the tour; other tests check others."""
    file = next(
        Path(FOLDER.name, 'work_dirs/tour_fp16').glob('*/vis_data/*.json')
    )
    keys = set().union(*map(read, file.read_text().splitlines()))
    explained = set(re.findall(r'^\| `train/(\S+)` \|', TEXT, re.M))
    assert {key for key in keys if key.startswith('guard/')} <= explained
