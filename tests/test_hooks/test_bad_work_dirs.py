"""A work dir that is full, read-only, gone or odd costs records only."""

import errno
import json
import shutil
from pathlib import Path

import pytest
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from toys import guard_hooks, make_runner, read_rows, wrapper

from mmnanguard.hooks.events.event_log_hook import last_attempt

FAULTS = (dict(iter=3, site='grad'), dict(iter=6, site='grad'))


def log_of(runner):
    (log,) = Path(runner.log_dir).glob('*.log')
    return log.read_text()


def train(work_dir, *custom_hooks, **hooks):
    runner = make_runner(
        work_dir,
        wrapper(),
        default_hooks={**guard_hooks(*FAULTS), **hooks},
        custom_hooks=list(custom_hooks),
    )
    runner.train()
    assert runner.iter == 10
    return runner


def test_rows_are_lost_and_it_says_so_once(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, 'Read-only file system')

    name = 'mmnanguard.hooks.events.event_log_hook.open'
    monkeypatch.setattr(name, refuse, raising=False)
    log = log_of(train(tmp_path))
    assert log.count('Read-only file system') == 1
    assert '4 rows of' in log  # start, two updates, end


def test_a_folder_that_cannot_be_made(tmp_path):
    class Block(Hook):
        priority = 'VERY_HIGH'

        def before_train(self, runner):
            Path(runner.log_dir, 'nanguard').touch()

    assert '(said once)' in log_of(train(tmp_path, Block()))


def test_a_folder_that_vanishes(tmp_path):
    class Remove(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 4:
                shutil.rmtree(Path(runner.log_dir, 'nanguard'))

    runner = train(tmp_path, Remove())
    (row,) = read_rows(runner)
    assert row['iter'] == 6
    assert 'cannot write' not in log_of(runner)


def test_a_row_that_is_no_json(tmp_path):
    class Odd(Hook):
        def after_train_iter(
            self, runner, batch_idx, data_batch=None, outputs=None
        ):
            if runner.iter == 4:
                row = dict(kind='mine', what=object())
                runner.call_hook('after_guard_row', row=row)

    runner = train(tmp_path, Odd())
    assert len(read_rows(runner)) == 2
    assert "a row of kind 'mine'" in log_of(runner)


ODD_LINES = [
    b'["start"]',
    b'{"kind": "start", "run": ["a"], "attempt": "x"}',
    b'{"kind": "start", "run": "a", "attempt": 7, "iter": {}}',
    b'{"kind": "start", "run": "a", "attempt": 9',
    b'"start"' + b'[' * 100_000,
    b'"start"' * 1_000_000,
    b'\xff"start"',
]


def test_odd_logs_keep_no_run_from_starting(tmp_path):
    folder = tmp_path / '20200101_000000' / 'nanguard'
    folder.mkdir(parents=True)
    (folder / 'events.jsonl').write_bytes(b'\n'.join(ODD_LINES))
    (tmp_path / '20200101_000001' / 'nanguard' / 'events.jsonl').mkdir(
        parents=True
    )
    assert last_attempt(str(tmp_path), 'a') == 7
    train(tmp_path)


def test_a_large_log_is_read_in_little_memory(tmp_path, monkeypatch):
    folder = tmp_path / '20200101_000000' / 'nanguard'
    folder.mkdir(parents=True)
    first = dict(kind='start', run='a', attempt=1, iter=1)
    update = json.dumps(dict(kind='update', samples=['x' * 80] * 100))
    with open(folder / 'events.jsonl', 'w') as file:
        file.write(json.dumps(first) + '\n')
        for _ in range(1000):
            file.write(update + '\n')
        file.write(json.dumps(dict(first, attempt=2)) + '\n')
    monkeypatch.setattr(Path, 'read_bytes', pytest.fail)
    monkeypatch.setattr(Path, 'read_text', pytest.fail)
    assert last_attempt(str(tmp_path), 'a') == 2


class Disk:
    """A disk on which some checkpoints have room."""

    def __init__(self, monkeypatch, folder, room):
        put = LocalBackend.put

        def put_or_fail(backend, obj, filepath):
            if len(list(Path(folder).glob('*.pth'))) >= room:
                raise OSError(errno.ENOSPC, 'No space left on device')
            put(backend, obj, filepath)

        monkeypatch.setattr(LocalBackend, 'put', put_or_fail)


SAVE = dict(
    type='CheckpointHook', by_epoch=False, interval=2, max_keep_ckpts=1
)


def test_a_full_disk_costs_checkpoints(tmp_path, monkeypatch):
    Disk(monkeypatch, tmp_path, room=0)
    audit = dict(type='mmnanguard.StateAuditHook')
    runner = train(tmp_path, checkpoint=dict(SAVE), audit=audit)
    assert not list(tmp_path.glob('*.pth*'))
    assert 'a checkpoint is lost' in log_of(runner)


def test_an_older_checkpoint_makes_room(tmp_path, monkeypatch):
    """MMEngine removes the older one first, so it needs no room for two."""
    Disk(monkeypatch, tmp_path, room=1)
    audit = dict(type='mmnanguard.StateAuditHook')
    runner = train(tmp_path, checkpoint=dict(SAVE), audit=audit)
    (path,) = tmp_path.glob('*.pth')
    assert path.name == 'iter_10.pth'
    assert 'a checkpoint is lost' not in log_of(runner)
