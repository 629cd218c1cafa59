"""An ordinary mistake costs tools/replay.py one message and exit status 2."""

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import public_surface
import pytest
import torch
from test_replay import SickNet, replay, train

from mmnanguard.hooks.replay.check_dump import ITEMS

TOOL = 'replay'
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def dumped(tmp_path_factory):
    return train(tmp_path_factory.mktemp('work dir'))[1]


@pytest.fixture
def dump(dumped, tmp_path):
    path = tmp_path / 'x.pt'
    path.write_bytes(dumped.read_bytes())
    return path


def edit(path, **keys):
    torch.save({**torch.load(path), **keys}, path)


def add(path, line):
    edit(path, config=torch.load(path)['config'] + f'\n{line}\n')


def rename(path, name):
    config = torch.load(path)['config']
    edit(path, config=config.replace("'SickNet'", f"'{name}'"))


def assert_one_message(status, row, output, *expected):
    assert (status, row) == (2, None)
    for part in expected:
        assert part in output
    assert 'Traceback' not in output


def test_no_code_of_the_config_runs(tool, dump, capsys, tmp_path):
    add(dump, f"x = open({str(tmp_path / 'ran')!r}, 'w')")
    outcome = replay(tool, dump), capsys.readouterr().err
    assert_one_message(
        *outcome[0], outcome[1], 'x.pt', "has open('", '--config'
    )
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
    'name', ['os.system', 'subprocess.Popen', 'torch.hub.load']
)
def test_a_type_is_no_way_to_call_anything(tool, dump, capsys, name):
    rename(dump, name)
    status = replay(tool, dump)
    output = capsys.readouterr().err
    assert_one_message(*status, output, name, 'in no registry', '--config')


def test_a_type_may_be_named_by_its_place(tool, dump):
    """Lazy configs name types in this way."""
    rename(dump, f'{SickNet.__module__}.SickNet')
    text = torch.load(dump)['config']
    assert "'SGD'" in text
    text = text.replace("'SGD'", "'torch.optim.sgd.SGD'").replace(
        "'mmnanguard.NanGuardOptimWrapper'",
        "'mmnanguard.optim.NanGuardOptimWrapper'",
    )
    edit(dump, config=text)
    status, row = replay(tool, dump)
    assert status == 1
    assert row['module'] == 'conv'


def test_own_modules_are_imported(tool, dump, tmp_path, monkeypatch):
    (tmp_path / 'own_net.py').write_text(
        'from mmengine.registry import MODELS\n'
        'from test_replay import SickNet\n'
        '@MODELS.register_module()\n'
        'class OwnNet(SickNet):\n    pass\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    rename(dump, 'OwnNet')
    add(dump, "custom_imports = dict(imports=['own_net'])")
    status, row = replay(tool, dump)
    assert status == 1
    assert row['module'] == 'conv'


@pytest.mark.parametrize('name', ['nowhere.Net', 'Nobody'])
def test_a_type_that_is_not_there(tool, dump, capsys, name):
    rename(dump, name)
    status = replay(tool, dump)
    output = capsys.readouterr().err
    assert_one_message(*status, output, name, str(dump), 'PYTHONPATH')


def test_a_module_that_is_not_there(tool, dump, capsys):
    add(dump, "custom_imports = dict(imports=['nowhere'])")
    status = replay(tool, dump)
    output = capsys.readouterr().err
    assert_one_message(
        *status, output, "No module named 'nowhere'", 'PYTHONPATH'
    )


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (None, 'cannot be read (FileNotFoundError'),
        ('x = (', 'cannot be read (SyntaxError'),
        ("custom_imports = dict(imports=['nowhere'])", 'PYTHONPATH'),
        ("model = dict(type='SickNet')", 'has no `optim_wrapper`'),
        ("optim_wrapper = dict(type='OptimWrapper')", 'has no `model`'),
    ],
)
def test_configs(tool, dump, capsys, tmp_path, text, message):
    path = tmp_path / 'config.py'
    if text is not None:
        path.write_text(text)
    status = replay(tool, dump, '--config', path)
    assert_one_message(*status, capsys.readouterr().err, str(path), message)


@pytest.mark.parametrize(
    ('checkpoint', 'message'),
    [
        ([1, 2], 'holds a list'),
        (dict(state_dict=[1, 2]), 'holds a list'),
        (dict(state_dict={'head.bias': torch.ones(7)}), 'size mismatch for'),
    ],
)
def test_checkpoints(tool, dump, capsys, tmp_path, checkpoint, message):
    path = tmp_path / 'x.pth'
    torch.save(checkpoint, path)
    status = replay(tool, dump, '--checkpoint', path)
    assert_one_message(*status, capsys.readouterr().err, str(path), message)


def test_a_model_that_cannot_run(tool, dump, capsys, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError('wants 4 channels')

    monkeypatch.setattr(SickNet, 'forward', fails)
    status = replay(tool, dump)
    output = capsys.readouterr().err
    assert_one_message(*status, output, 'RuntimeError: wants 4', __file__)


@pytest.mark.parametrize('device', ['xpu', 'nonsense'])
def test_devices(tool, dump, capsys, device):
    status = replay(tool, dump, '--device', device)
    output = capsys.readouterr().err
    assert_one_message(*status, output, f'--device {device} cannot be used')


def test_a_dump_that_is_not_there(tool, tmp_path, capsys):
    status = replay(tool, tmp_path / 'no' / 'x.pt')
    assert_one_message(*status, capsys.readouterr().err, 'x.pt is no file')
    assert not (tmp_path / 'no').exists()


def test_json_goes_to_a_new_folder(tool, dump, tmp_path):
    path = tmp_path / 'a' / 'b' / 'x.json'
    assert replay(tool, dump, '--json', path)[0] == 1
    assert path.exists()


def test_json_that_cannot_be_written_is_told_before_the_work(
    tool, dump, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(SickNet, 'forward', None)
    for path in (tmp_path, dump / 'x.json'):
        status = replay(tool, dump, '--json', path)
        output = capsys.readouterr().err
        assert_one_message(*status, output, f'{path} cannot be written')


def test_a_failure_leaves_no_json(tool, dump, tmp_path):
    path = tmp_path / 'x.json'
    edit(dump, schema=7)
    assert replay(tool, dump, '--json', path) == (2, None)


def test_a_dump_of_before_spikes(tool, dump):
    event = torch.load(dump)['event']
    edit(dump, event={k: v for k, v in event.items() if k != 'spike'})
    assert replay(tool, dump)[0] == 1


def test_nothing_stays_in_the_temporary_folder(
    tool, dump, tmp_path, monkeypatch
):
    folder = tmp_path / 'temporary'
    folder.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(folder))
    assert replay(tool, dump)[0] == 1
    assert list(folder.iterdir()) == []


def test_the_command_in_the_log_is_one_for_a_shell(dumped):
    (log,) = Path(dumped).parents[2].glob('*.log')
    (line,) = [x for x in log.read_text().splitlines() if 'run it: ' in x]
    command = shlex.split(line.split('run it: ')[1])
    words = ['python', '-m', 'mmnanguard', 'replay', str(dumped)]
    assert command == words


def test_help_says_what_is_imported():
    output = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'replay.py', '--help'],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert 'custom_imports, are imported by name' in ' '.join(output.split())


DUMP_KEYS = public_surface.DUMP_KEYS.split()
ODD_VALUES = [None, 'x', [None], {'a': 1}, b'x', torch.ones(2)]


@pytest.mark.parametrize('key', DUMP_KEYS)
def test_a_damaged_dump_is_one_line(tool, dump, capsys, key):
    whole = torch.load(dump)
    for odd in ODD_VALUES:
        torch.save({**whole, key: odd}, dump)
        status, _ = replay(tool, dump)
        errors = capsys.readouterr().err.splitlines()
        # Some values are as good as the right one, such as other versions.
        assert (status, len(errors)) in ((0, 0), (1, 0), (2, 1))
        if key in ITEMS and odd == [None]:
            assert f'is damaged: its {key} holds a NoneType' in errors[0]
    del whole[key]
    torch.save(whole, dump)
    status, _ = replay(tool, dump)
    errors = capsys.readouterr().err.splitlines()
    assert (status, len(errors)) in ((0, 0), (1, 0), (2, 1))


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'', 'it is empty'),
        (b'hello', 'it is neither a zip file nor a pickle'),
        (None, 'it is truncated'),
        # PyTorch warns of the protocol.
        (b'\x80\x04K\x01.', 'Invalid magic number'),
    ],
)
def test_a_file_that_is_no_dump_is_one_line(tool, dump, capfd, content, words):
    if content is None:
        content = dump.read_bytes()[:-400]
    dump.write_bytes(content)
    outcome = replay(tool, dump)
    output = capfd.readouterr().err
    assert_one_message(*outcome, output, words)
    assert len(output.splitlines()) == 1
