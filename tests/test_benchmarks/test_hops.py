"""One update stays within a number of files that a reader can follow."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def hops(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module('hops')


@pytest.mark.parametrize(
    ('case', 'most_files', 'most_changes'),
    [
        ('clean, wrapper alone', 20, 60),
        ('clean, both hooks', 26, 80),
        # A line of the console is fitted to its width by two files of its own.
        ('rejected, both hooks', 38, 160),
    ],
)
def test_an_update_changes_file_seldom(hops, case, most_files, most_changes):
    counts = hops.follow(hops.CASES[case]).counts()
    assert 10 < counts['files'] <= most_files
    assert 10 < counts['changes'] <= most_changes


def test_a_table_of_all_cases(hops, capsys):
    assert hops.main(['--cases', 'clean, wrapper alone', '--calls']) == 0
    output = capsys.readouterr().out
    assert 'optim/guarded_step.py: guarded_step' in output
    assert '| clean, wrapper alone |' in output
