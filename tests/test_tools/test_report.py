"""Reports by tools/report.py on the files of real runs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from event_rows import dump, halt, start, update, write_events
from laptop import laptop
from ranks import DEADLINE
from toys import guard_hooks, make_runner, wrapper

TOOL = 'report'
ROOT = Path(__file__).parents[2]
JOB = """
import os, signal, sys
from mmengine.hooks import Hook
from toys import guard_hooks, make_runner, wrapper

class Dies(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 8:
            os.kill(os.getpid(), signal.SIGKILL)

hooks = guard_hooks(dict(iter=3, site='grad', where='head.weight'),
                    dict(iter=7, site='loss'))
hooks['checkpoint'] = dict(type='CheckpointHook', by_epoch=False, interval=5)
make_runner(sys.argv[1], wrapper(), default_hooks=hooks,
            custom_hooks=[Dies()]).train()
"""


@pytest.fixture(scope='module')
def resumed(tmp_path_factory):
    """Return a run that was killed in iteration 9 and resumed from 5 to 10."""
    work_dir = tmp_path_factory.mktemp('resumed')
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', JOB, work_dir],
        env=environment,
        capture_output=True,
        timeout=DEADLINE,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    hooks = guard_hooks(dict(iter=7, site='loss'), dict(iter=9, site='grad'))
    make_runner(work_dir, wrapper(), default_hooks=hooks, resume=True).train()
    return work_dir


@pytest.fixture
def halted(tmp_path):
    write_events(tmp_path / 'halted' / '1', [start(), update(5), halt(5)])
    return tmp_path / 'halted'


def read_page(path):
    """Return the data that the page shows."""
    (data,) = re.findall(r'id="data">(.*?)</script>', path.read_text(), re.S)
    return json.loads(data)['runs']


def test_a_killed_and_resumed_run_is_one(tool, resumed, capsys):
    assert tool.main([str(resumed)]) == 0

    page = resumed / 'nanguard_report.html'
    output = capsys.readouterr().out
    assert 'healthy: 3 updates rejected now and then' in output
    assert f'written to {page}' in output
    (run,) = read_page(page)
    assert dict(run['facts'])['attempts'] == '2'
    assert [(event['kind'], event['iter']) for event in run['events']] == [
        *(('start', 1), ('update', 3), ('start', 6)),
        *(('update', 7), ('update', 9), ('end', 10)),
    ]
    curves = {
        trace['name']: trace
        for trace in run['figure']['data']
        if trace.get('mode') == 'lines'
    }
    # Each iteration once; those that were rejected have no finite loss.
    assert curves['loss']['x'] == list(range(1, 11))
    assert curves['grad_norm']['x'] == list(range(1, 11))
    assert 'iteration 10 of 10, finished' in run['progress']


def test_text_and_json(tool, resumed, tmp_path, capsys):
    assert tool.main([str(resumed), '--text']) == 0
    output = capsys.readouterr().out
    assert 'head.weight' in output
    assert '\x1b' not in output
    out = tmp_path / 'report.json'
    assert tool.main([str(resumed), '--json', '--out', str(out)]) == 0
    report = json.loads(out.read_text())
    assert (report['schema'], report['status']) == (1, 0)
    (run,) = report['runs']
    assert run['causes'] == dict(grad_nonfinite=2, loss_nonfinite=1)


def test_json_on_stdout_is_nothing_else(halted):
    command = laptop(ROOT / 'tools' / 'report.py', halted, '--json')
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 1, done.stderr.decode()
    assert json.loads(done.stdout)['status'] == 1
    assert done.stderr == b''


def test_several_runs(tool, resumed, halted, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert tool.main([str(resumed), str(halted)]) == 1
    assert 'written to nanguard_report.html' in capsys.readouterr().out
    good, bad = read_page(tmp_path / 'nanguard_report.html')
    assert (good['healthy'], bad['healthy']) == (True, False)
    assert (
        good['figure']['layout']['xaxis']['range']
        == bad['figure']['layout']['xaxis']['range']
    )


def test_runs_of_one_work_dir(tool, halted, capsys):
    write_events(halted / '2', [start(run='b')])
    assert tool.main([str(halted)]) == 0  # the one that wrote last
    assert tool.main([str(halted), '--run', 'a', '--run', 'b']) == 1
    assert len(read_page(halted / 'nanguard_report.html')) == 2
    assert tool.main([str(halted), '--run', 'c']) == 2
    assert "known runs: 'a', 'b'" in capsys.readouterr().err


def test_a_work_dir_that_was_moved(tool, halted, capsys):
    """A moved dump is replayed from its present path."""
    dump_path = 'nanguard/dumps/iter_5_rank0.pt'
    write_events(halted / '1', [dump(5, f'/cluster/halted/1/{dump_path}')])
    assert tool.main([str(halted), '--text']) == 1
    assert f'replay /cluster/halted/1/{dump_path}' in capsys.readouterr().out
    (halted / '1' / dump_path).parent.mkdir(parents=True)
    (halted / '1' / dump_path).touch()
    for path in (halted, halted / '1' / 'nanguard' / 'events.jsonl'):
        assert tool.main([str(path), '--text']) == 1
        assert f'replay {halted}/1/{dump_path}' in capsys.readouterr().out


@pytest.mark.parametrize('name', ['last_clean_checkpoint', 'last_checkpoint'])
def test_a_dump_without_weights(tool, halted, name, capsys):
    """The command can be pasted unchanged where a checkpoint is known."""
    write_events(halted / '1', [dump(5, needs=['checkpoint'])])
    (halted / 'last_checkpoint').write_text('/cluster/halted/newest.pth')
    (halted / name).write_text('/cluster/halted/iter_4.pth\n')
    assert tool.main([str(halted), '--text']) == 1
    assert '--checkpoint FILE' in capsys.readouterr().out
    checkpoint = halted / 'iter_4.pth'
    checkpoint.touch()
    assert tool.main([str(halted), '--text']) == 1
    output = capsys.readouterr().out
    assert f'rank0.pt --checkpoint {checkpoint}' in output
    assert 'the checkpoint is older than the dump' in output


def test_watch(halted):
    """The page follows the run; the last page stays unchanged."""
    page = halted / 'nanguard_report.html'
    tool = ROOT / 'tools' / 'report.py'
    process = subprocess.Popen(
        laptop(tool, halted, '--watch', 0.2),
        stdout=subprocess.PIPE,
        # What a shell starts in the background inherits that it is ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + DEADLINE
        while not page.exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        write_events(halted / '2', [start(6, attempt=2), update(9)])
        while 'healthy' not in read_page(page)[0]['verdict']:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert '"reload": 0.2' in page.read_text()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    assert process.returncode == 0
    assert '"reload": null' in page.read_text()


def test_what_is_no_run(tool, tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'broken.jsonl').write_text('{"kind": "upd')
    make_runner(tmp_path / 'bare', wrapper(), max_iters=1).train()
    capsys.readouterr()
    for name, said in (
        ('nowhere', 'there is no such folder or file'),
        ('empty', "event_log=dict(type='mmnanguard.EventLogHook')"),
        ('bare', 'the guard was not attached, or tells nobody'),
        ('broken.jsonl', 'holds no row that names its run'),
    ):
        assert tool.main([str(tmp_path / name)]) == 2
        output = capsys.readouterr().err
        assert said in output, output
        assert 'Traceback' not in output


def test_a_folder_above_work_dirs(tool, tmp_path, capsys):
    """The message names the runs below, the one that wrote last first."""
    newer = tmp_path / 'drill' / '1' / 'guard ed'
    for time_, folder in ((1, tmp_path / 'x'), (2, newer)):
        for attempt in ('1', '2'):
            os.utime(write_events(folder / attempt, [start()]), (time_, time_))
    assert tool.main([str(tmp_path)]) == 2
    output = capsys.readouterr().err
    assert f"runs are below it: '{newer}', {tmp_path / 'x'}\n" in output
    assert tool.main([str(newer.parents[1])]) == 2
    assert f"below it: '{newer}'\n" in capsys.readouterr().err
    for number in range(8):
        write_events(tmp_path / f'{number}' / '1', [start()])
    assert tool.main([str(tmp_path)]) == 2
    output = capsys.readouterr().err
    assert output.count(str(tmp_path)) == 1 + 5
    assert output.endswith(' and 5 more\n')


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (['--watch', 'x'], "'x' is no number of seconds above 0 (paths come"),
        (['--watch', 'nan'], 'is no number of seconds above 0'),
        (['--watch', '--json'], 'leave out --text and --json'),
        (['--text', '--out', 'x'], 'leave out --out'),
        (['--text', '--json'], 'not allowed with'),
    ],
)
def test_a_wrong_command_line(tool, options, said, capsys):
    with pytest.raises(SystemExit) as error:
        tool.main(['x', *options])
    assert error.value.code == 2
    assert said in capsys.readouterr().err


def test_a_crash_is_not_called_a_sick_run(tool, halted, monkeypatch, capsys):
    monkeypatch.setattr('mmnanguard.report.load_run', lambda *args: 1 / 0)
    assert tool.main([str(halted)]) == 70
    assert 'ZeroDivisionError' in capsys.readouterr().err
