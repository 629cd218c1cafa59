import importlib
import sys
from pathlib import Path

import pytest

CASE = Path(__file__).parents[2] / 'configs/cases/fp16_static_scale/old_1x.py'


@pytest.fixture
def tool():
    return importlib.import_module('tools.migrate_config')


@pytest.fixture
def old(tmp_path):
    path = tmp_path / 'old.py'
    path.write_text(CASE.read_text())
    return path


def run(tool, capsys, *args):
    status = tool.main([str(arg) for arg in args])
    return status, capsys.readouterr().out


def test_it_prints_and_writes_nothing(tool, old, capsys):
    status, out = run(tool, capsys, old)
    assert status == 0
    assert [path.name for path in old.parent.iterdir()] == ['old.py']
    assert old.read_text() == CASE.read_text()
    lines = out.splitlines()
    assert lines[0] == f'--- {old}'
    assert '-fp16 = dict(loss_scale=1024.0)' in lines
    assert '+    loss_scale=1024.0,' in lines
    assert lines.index('done:') < lines.index('changed in meaning:')
    assert '\x1b' not in out


def test_a_new_file(tool, old, capsys):
    new = old.parent / 'new.py'
    status, out = run(tool, capsys, old, '--out', new)
    assert status == 0
    assert out.endswith(f'written: {new}\n')
    assert old.read_text() == CASE.read_text()
    assert 'NanGuardAmpOptimWrapper' in new.read_text()
    status, out = run(tool, capsys, new)
    assert (status, out) == (0, 'nothing to do here\n')


def test_in_place(tool, old, capsys):
    assert run(tool, capsys, old, '--in-place')[0] == 0
    assert 'NanGuardAmpOptimWrapper' in old.read_text()


def test_something_is_left(tool, old, capsys):
    with old.open('a') as file:
        file.write('img_norm_cfg = dict(mean=[0])\n')
    status, out = run(tool, capsys, old)
    assert status == 1
    assert 'cannot do, left to you:\n- line 15: normalising moves' in out


def test_the_guard(tool, old, capsys):
    _, out = run(tool, capsys, old, '--guard', 'bf16')
    assert "dtype='bfloat16'" in out
    assert 'its loss scale is left out' in out


def test_colours_on_a_terminal(tool, old, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    monkeypatch.setenv('TERM', 'xterm-256color')
    monkeypatch.delenv('NO_COLOR', raising=False)
    assert '\x1b[32m+optim_wrapper' in run(tool, capsys, old)[1]


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ([], 'required: config'),
        (['no/such.py'], 'not found: no/such.py'),
        ([CASE, '--out', CASE], 'exists: remove it'),
        ([CASE, '--out', 'new.py'], 'beside the config'),
        ([CASE, '--out', 'x.py', '--in-place'], 'not allowed with'),
    ],
)
def test_bad_usage(tool, args, message, capsys):
    with pytest.raises(SystemExit) as stop:
        tool.main([str(arg) for arg in args])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be_read(tool, old, capsys):
    assert tool.main([str(old), '--guard', 'fp17']) == 2
    assert "guard 'fp17' is neither" in capsys.readouterr().err
    old.write_text('optimizer = (')
    assert tool.main([str(old)]) == 2
    out, err = capsys.readouterr()
    assert 'is no Python' in err
    assert 'nothing to do' not in out


def test_a_fault_of_the_tool_is_told_from_a_note(
    tool, old, capsys, monkeypatch
):
    def fail(*_, **__):
        raise ValueError('of the tool')

    monkeypatch.setattr('mmnanguard.migrate.migrate_tree', fail)
    status = tool.main([str(old), '--in-place'])
    error = capsys.readouterr().err
    assert status == 70
    assert 'ValueError: of the tool' in error
    assert 'a fault of the tool' in error
    assert old.read_text() == CASE.read_text()


def test_without_libcst(tool, old, capsys, monkeypatch):
    for name in [*sys.modules]:
        if name.startswith('mmnanguard.migrate'):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'libcst', None)
    assert tool.main([str(old)]) == 2
    assert 'pip install libcst' in capsys.readouterr().err


def test_line_ends_stay(tool, old, capsys):
    text = CASE.read_text().replace('(max_norm=35, ', '(\n    max_norm=35, ')
    old.write_bytes(text.replace('\n', '\r\n').encode())
    assert run(tool, capsys, old, '--in-place')[0] == 0
    new = old.read_bytes()
    assert new.count(b'\r\n') == new.count(b'\n') > 20
    compile(new, 'new', 'exec')
