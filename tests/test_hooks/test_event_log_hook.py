import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from toys import (
    guard_hooks,
    loader,
    make_data,
    make_runner,
    read_rows,
    wrapper,
)

from mmnanguard.report import read_events

TESTS = Path(__file__).parents[1]


def run(tmp_path, *faults, **changes):
    runner = make_runner(
        tmp_path,
        wrapper('NanGuardOptimWrapper'),
        default_hooks=guard_hooks(*faults),
        **changes,
    )
    runner.train()
    return runner


def test_rows_are_strict_json_and_begin_with_the_start(tmp_path):
    runner = run(tmp_path, dict(iter=3, site='loss', value='inf'))
    path = Path(runner.log_dir) / 'nanguard' / 'events.jsonl'
    rows = [
        json.loads(line, parse_constant=pytest.fail)
        for line in path.read_text().splitlines()
    ]
    assert [row['kind'] for row in rows] == ['start', 'update', 'end']
    start, update, end = rows
    assert (end['how'], end['iter'], end['error']) == ('finished', 10, '')
    assert start['run'] == update['run']
    assert start['attempt'] == 1
    assert start['max_iters'] == 10
    assert start['versions'].keys() >= {'mmnanguard', 'mmengine', 'torch'}
    guard = start['guards']['default']
    assert guard['optimizer'] == 'SGD'
    assert guard['policy']['max_consecutive_skips'] == 20
    assert update['loss'] == 'inf'


@pytest.mark.parametrize('faults', [(), (dict(iter=3, site='loss'),)])
def test_its_last_line_is_the_command_that_explains_it(tmp_path, faults):
    tmp_path = tmp_path / ('a_long_name_of_a_folder' * 8)
    runner = run(tmp_path, *faults)
    (log,) = Path(runner.log_dir).glob('*.log')
    lines = log.read_text().splitlines()
    commands = [line for line in lines if 'mmnanguard report' in line]
    assert len(commands) == len(faults)
    for line in commands:
        assert '1 update rejected; ' in lines[lines.index(line) - 1]
        # On a line of its own, however long the path is.
        assert Path(line.split()[-1]).samefile(tmp_path)


def test_a_killed_process_loses_no_row(tmp_path):
    script = f"""
import os, signal, sys
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]
from mmengine.hooks import Hook
from toys import guard_hooks, make_runner, wrapper

class Kill(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == 6:
            os.kill(os.getpid(), signal.SIGKILL)

make_runner(
    {str(tmp_path)!r}, wrapper('NanGuardOptimWrapper'),
    default_hooks=guard_hooks(dict(iter=5, site='grad')),
    custom_hooks=[Kill()]).train()
"""
    env = {**os.environ, 'PYTHONWARNINGS': 'ignore'}
    done = subprocess.run(
        [sys.executable, '-c', script], env=env, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    (path,) = tmp_path.glob('*/nanguard/events.jsonl')
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row['kind'], row['iter']) for row in rows] == [
        ('start', 1),
        ('update', 5),
    ]


def test_without_the_nan_guard_hook_it_says_that_it_is_idle(tmp_path):
    hooks = guard_hooks()
    del hooks['nan_guard']
    runner = make_runner(
        tmp_path, wrapper('NanGuardOptimWrapper'), default_hooks=hooks
    )
    runner.train()
    (log,) = Path(runner.log_dir).glob('*.log')
    assert 'EventLogHook gets no events without' in log.read_text()


def test_a_disk_that_refuses_costs_rows_not_the_run(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(
        'mmnanguard.hooks.events.event_log_hook.open', full, raising=False
    )
    runner = run(tmp_path, dict(iter=3, site='grad'))
    assert runner.iter == 10
    (log,) = Path(runner.log_dir).glob('*.log')
    assert 'No space left on device' in log.read_text()


def test_two_events_of_one_iteration_have_two_ids(tmp_path):
    runner = run(tmp_path, dict(iter=3, site='grad'))
    hook = next(
        hook for hook in runner.hooks if type(hook).__name__ == 'NanGuardHook'
    )
    guard = runner.optim_wrapper.guard
    (row,) = read_rows(runner)
    assert row['id'] == f'{guard.run}-3'
    event = guard._streak._events[-1]
    assert hook._ids.new(event) == f'{guard.run}-3.2'


@pytest.mark.parametrize('kept', [75, -1, None])
def test_a_half_written_start_does_not_stop_the_next(
    tmp_path, monkeypatch, kept
):
    """A run is killed while it writes its start; the next begins in that
    second.
    """
    monkeypatch.setattr('time.strftime', lambda *_: 'one_second')
    save = dict(type='CheckpointHook', by_epoch=False, interval=4)
    faults = [dict(iter=i, site='loss', value='nan') for i in (3, 7)]
    hooks = {**guard_hooks(*faults), 'checkpoint': save}
    optim = wrapper('NanGuardOptimWrapper')
    keys = dict(default_hooks=hooks, max_iters=8)
    make_runner(tmp_path, optim, **keys).train()
    (path,) = tmp_path.glob('*/nanguard/events.jsonl')
    start = path.read_text().split('\n')[0]
    start = start.replace('pt": 1,', 'pt": 2,').replace('er": 1,', 'er": 5,')
    with open(path, 'a') as file:
        file.write(start[:kept])
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_4.pth'))
    make_runner(tmp_path, optim, resume=True, **keys).train()

    attempt = 3 if kept is None else 2  # a whole start counts
    written = [
        (row['kind'], row['iter'], row.get('attempt', attempt))
        for row in read_events(str(tmp_path))
    ]
    assert written.pop() == ('end', 8, attempt)
    assert written[:2] == [('start', 1, 1), ('update', 3, 1)]
    assert written[-2:] == [('start', 5, attempt), ('update', 7, attempt)]
    assert len(written) == attempt + 2


def test_a_file_name_that_is_no_utf8(tmp_path):
    """The name is in the form in which ``os.listdir`` returns it."""
    name = 'train/\udcff 漢.jpg'
    data = make_data(40)
    data[8]['data_samples'].set_metainfo(dict(img_path=name))
    fault = dict(iter=3, site='loss', value='nan')
    runner = run(tmp_path, fault, train_dataloader=loader(data))
    (row,) = read_rows(runner)
    assert row['samples'][0] == name
