"""The table of stacks is written from runs, and is equal in all languages."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def stacks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module('stacks')


@pytest.fixture
def page(stacks, monkeypatch, tmp_path):
    page = tmp_path / 'stacks.md'
    page.write_text(
        f'# Stacks\n\n{stacks.MARK}\n\n| a | b |\n| --- | --- |\n'
        '| 3.13.0 | 2.14 | 2.5 | 0.10.7 | 84 | short | 1 | 0 | 0 | day |\n'
        '\nAfter.\n'
    )
    monkeypatch.setattr(stacks, 'PAGES', [page])
    return page


def test_a_run_writes_its_row(stacks, page, monkeypatch, capsys):
    monkeypatch.setitem(
        stacks.PARTS, 'short', ('tests/test_core/test_stack.py',)
    )
    for _ in range(2):
        assert stacks.main([sys.executable]) == 0
    before, rows, after = stacks.read_rows(page.read_text())
    versions = stacks.describe(sys.executable)
    assert before[0] == '# Stacks'
    assert after == ['', 'After.', '']
    # The first run's row was replaced, and versions are in order.
    first, other = rows
    assert first[:2] == [versions['python'], versions['torch']]
    assert other[0] == '3.13.0'
    assert int(first[6]) > 0
    assert first[7] == '0'


def test_a_part_that_fails_says_so(stacks, page, monkeypatch, capsys):
    monkeypatch.setitem(stacks.PARTS, 'short', ('tests/no_such_test.py',))
    assert stacks.main([sys.executable]) == 1
    _, rows, _ = stacks.read_rows(page.read_text())
    assert '1' in {row[7] for row in rows}
    assert 'no_such_test' in capsys.readouterr().err


def test_all_languages_have_the_same_rows(stacks):
    tables = [
        stacks.read_rows(page.read_text(encoding='utf-8'))[1]
        for page in stacks.PAGES
    ]
    assert tables[0] == tables[1]
    assert [row for row in tables[0] if row[7] != '0'] == []
