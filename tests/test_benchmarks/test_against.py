"""Two checkouts are compared in processes that take turns."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPTIONS = ['--params', '1000-small', '--precisions', 'fp32', '--optimizers']
OPTIONS += ['SGD', '--clips', 'none', '--repeat', '2', '--threads', '1']


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    return importlib.import_module('benchmark')


def test_the_same_checkout_twice(benchmark, monkeypatch, capsys):
    against = importlib.import_module('against')
    monkeypatch.setattr(against, 'NUM_PROCESSES', 1)
    options = [*OPTIONS, '--against', str(ROOT), '--markdown']
    assert benchmark.main(options) == 0
    (row,) = [
        line
        for line in capsys.readouterr().out.splitlines()
        if '1000-small' in line
    ]
    _, kind, this, other, ratio, _ = (cell.strip() for cell in row.split('|'))
    assert kind == '1000-small, fp32, SGD, none'
    assert float(ratio) == pytest.approx(float(this) / float(other), abs=0.01)


def test_the_other_checkout_is_really_used(benchmark, tmp_path, monkeypatch):
    """A checkout whose package cannot be imported is an error."""
    against = importlib.import_module('against')
    monkeypatch.setattr(against, 'NUM_PROCESSES', 1)
    package = tmp_path / 'mmnanguard'
    package.mkdir()
    (package / '__init__.py').write_text('raise RuntimeError("the other")')
    with pytest.raises(against.subprocess.CalledProcessError):
        benchmark.main([*OPTIONS, '--against', str(tmp_path)])


def test_a_folder_without_a_package_is_refused(benchmark, tmp_path, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([*OPTIONS, f'--against={tmp_path}'])
    assert 'no mmnanguard folder' in capsys.readouterr().err


def test_options_pass_without_the_other_checkout(benchmark):
    assert benchmark.without_against(['--against', 'x', '--repeat', '2']) == [
        '--repeat',
        '2',
    ]
    assert benchmark.without_against(['--against=x', '--times']) == ['--times']


def test_times_are_one_line_of_json(benchmark, capsys):
    assert benchmark.main([*OPTIONS, '--times']) == 0
    (times,) = json.loads(capsys.readouterr().out).items()
    assert times[0] == '1000-small, fp32, SGD, none'
    assert times[1] > 0
