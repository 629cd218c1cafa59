"""Names, versions and exit statuses are the same for all tools."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from event_rows import halt, start, update, write_events

import mmnanguard
from mmnanguard.__main__ import TOOLS
from mmnanguard._tool_parser import ToolParser, run_tool
from mmnanguard.core import GuardConfigError

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / 'configs/digits/guarded_fp32.py')
BORDERS = tuple('┏┃┡│└├')
NO_TEXT = b'\xff\xfe\x00 = 1'


@pytest.fixture(params=TOOLS)
def name(request, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.syspath_prepend(ROOT / 'tools')
    monkeypatch.setattr(sys, 'argv', [f'tools/{request.param}.py'])
    return request.param


def run(name, *words):
    """Return the exit status of a tool, as a process would."""
    module = importlib.import_module(name)
    try:
        return module.main(list(map(str, words)))
    except SystemExit as stop:
        return stop.code or 0


def test_an_unknown_option_is_wrong_use(name, capsys):
    assert run(name, 'anything', '--frobnicate') == 2
    error = capsys.readouterr().err
    assert 'Traceback' not in error
    assert '--frobnicate' in error or 'anything' in error


def test_a_path_that_does_not_exist_is_wrong_use(name, tmp_path, capsys):
    assert run(name, tmp_path / 'nowhere') == 2
    text, error = capsys.readouterr()
    assert 'Traceback' not in error
    # The doctor says it among its findings.
    if name == 'doctor':
        assert 'nowhere' in text
        return
    # Usage comes before the line of argparse.
    line = error.splitlines()[-1]
    assert line.startswith(f'tools/{name}.py: error: ')
    assert 'nowhere' in line


def test_a_file_that_cannot_be_read_is_no_fault_of_the_tool(
    name, tmp_path, capsys
):
    # A damaged checkpoint is what a scan looks for.
    # The doctor has tests of its own, for what it says of it.
    if name in ('scan_checkpoints', 'doctor'):
        pytest.skip('it finds damaged files')
    path = tmp_path / 'a_config.py'
    path.write_bytes(NO_TEXT)
    assert run(name, path) == 2
    error = capsys.readouterr().err
    assert 'Traceback' not in error
    assert path.name in error.splitlines()[-1]


def test_the_version(name, capsys):
    assert run(name, '--version') == 0
    assert capsys.readouterr().out == f'mmnanguard {mmnanguard.__version__}\n'


@pytest.mark.parametrize('is_module', [False, True])
def test_a_tool_has_the_name_that_was_typed(
    name, capsys, monkeypatch, is_module
):
    typed = f'tools/{name}.py'
    if is_module:
        typed = f'python -m mmnanguard {name}'
        monkeypatch.setattr(ToolParser, 'command', typed)
    assert run(name, '--help') == 0
    text = capsys.readouterr().out
    assert text.startswith(f'usage: {typed} ')
    # The example, too.
    assert typed in text.partition('Example:')[2]
    assert run(name) == 2
    assert f'{typed}: error: ' in capsys.readouterr().err


# What a tool finds


def events(folder, *rows):
    write_events(folder, [start(), *rows])
    return [folder]


def checkpoint(folder, value, name='head.weight'):
    weights = {name: torch.full((4,), value)}
    saved = dict(state_dict=weights, meta=dict(iter=5, epoch=1))
    torch.save(saved, folder / 'iter_5.pth')
    return [folder]


def audit(folder, most):
    check = f"dict(type='Range', key='inputs', min=0, max={most})"
    return [CONFIG, '--checks', check, '--out', folder / 'audit']


def config(folder, text):
    path = folder / 'a_config.py'
    path.write_text(f'model = dict(type="Net")\n{text}\n')
    return [path]


# The words of a command that finds nothing, and of one that finds something.
FOUND = {
    'report': (
        lambda folder: events(folder),
        lambda folder: events(folder, update(3), halt(3)),
    ),
    'scan_checkpoints': (
        lambda folder: checkpoint(folder, 1.0),
        lambda folder: checkpoint(folder, float('nan')),
    ),
    'audit_dataset': (
        lambda folder: audit(folder, 1e9),
        lambda folder: audit(folder, 3),
    ),
    'migrate_config': (
        lambda folder: config(folder, 'x = 1'),
        lambda folder: config(folder, "workflow = [('train', 1), ('val', 1)]"),
    ),
}


@pytest.mark.parametrize('is_found', [False, True])
def test_the_status_says_whether_something_is_found(
    name, tmp_path, capsys, is_found
):
    # tests/test_tools/test_replay.py, test_fire_drill.py and test_train.py
    # have the others, which take a training.
    if name not in FOUND:
        pytest.skip('needs a training')
    words = FOUND[name][is_found](tmp_path)
    assert run(name, *words) == int(is_found), capsys.readouterr()


LONG = 'backbone.' + 'a_module_with_a_long_name.' * 5 + 'weight'


def fire_drill_rows(tool):
    row = dict(iter=3, site='grad', where=LONG, bad_weights=[LONG, LONG])
    metrics = {f'a_metric_{number}': 0.5 for number in range(9)}
    tool.show([{**row, **metrics}] * 3)


def replay_rows(tool):
    tool.show_outputs({LONG: dict(min=-1e9, max=1e9, is_finite=False)})


# What prints a table, for a tool whose table needs a training.
TABLES = {'fire_drill': fire_drill_rows, 'replay': replay_rows}
TABLED = [*TABLES, 'report', 'scan_checkpoints', 'audit_dataset']


@pytest.mark.parametrize('name', TABLED, indirect=True)
def test_a_table_fits_80_columns(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    if name in TABLES:
        TABLES[name](importlib.import_module(name))
    elif name == 'report':
        folder = events(tmp_path, update(3, name=LONG), halt(3))
        run(name, *folder, '--text')
    elif name == 'scan_checkpoints':
        run(name, *checkpoint(tmp_path, float('nan'), LONG))
    else:
        run(name, *audit(tmp_path, 3))
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line[:1] in BORDERS]
    assert table
    assert max(map(len, table)) <= 80
    # A long name goes on in the next line, whole.
    assert '\u2026' not in ''.join(table)


@pytest.mark.parametrize(
    ('error', 'status'),
    [
        (GuardConfigError('x'), 2),
        (OSError(28, 'No space left on device'), 2),
        (UnicodeDecodeError('utf-8', b'x', 0, 1, 'x'), 2),
        (TypeError('a fault'), 70),
    ],
)
def test_a_fault_of_a_tool_is_no_finding(capsys, error, status):
    def fail(args):
        raise error

    assert run_tool(fail, None) == status
    assert ('Traceback' in capsys.readouterr().err) == (status == 70)
