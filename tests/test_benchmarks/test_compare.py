import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
    """Return the rows of two epochs, in which each bad sample comes twice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / 'benchmarks')
        import compare

        file = tmp_path_factory.mktemp('compare') / 'compare.json'
        options = ['--epochs', '2', '--repeat', '1', '--json', str(file)]
        assert compare.main(options) == 0
        rows = json.loads(file.read_text())['rows']
        return {row['way']: row for row in rows}


def test_only_the_guard_ends_well(rows):
    guards = {'mmnanguard', 'mmnanguard, InputGuardHook'}
    for way, row in rows.items():
        is_well = row['not finite'] == 'nothing'
        assert is_well == (way in guards), way
        assert (float(row['accuracy']) > 50) == is_well, way


def test_only_the_guard_names_samples(rows):
    assert rows['mmnanguard']['names'] == 'the batches of 2 bad samples'
    names = rows['mmnanguard, InputGuardHook']['names']
    assert names == '2 bad samples, 0 others'
    for way, row in rows.items():
        assert ('sample' in row['names']) == way.startswith('mmnanguard')


def test_what_ends_the_run(rows):
    early = [w for w, row in rows.items() if row['runs to'] != 'the end']
    assert early == ['CheckInvalidLossHook', 'detect_anomaly']


def test_the_readme_has_all_ways(rows):
    text = (ROOT / 'README.md').read_text()
    (table,) = re.findall('<!-- compare -->(.*?)<!-- /compare -->', text, re.S)
    assert len(table.strip().splitlines()) == 2 + len(rows)
