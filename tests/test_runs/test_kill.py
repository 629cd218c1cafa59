"""A kill -9 in the middle of a write leaves only whole checkpoints."""

import signal
from pathlib import Path

import pytest
from ranks import TESTS, finish, start

from mmnanguard.hooks import choose_resume
from mmnanguard.numerics.checkpoints.checkpoint_file import scan_file
from mmnanguard.safe_load import allow_mmengine_checkpoints

WRITES = {
    'checkpoint': r'iter_8\.pth',
    'pointer': r'last_checkpoint',
    'clean pointer': r'last_clean_checkpoint',
    'published': r'iter_12-\w+\.pth',
}


def kill(work_dir, pattern, time, is_audited=True):
    job = TESTS / 'test_runs' / 'kill_job.py'
    process = start([job, work_dir, pattern, time, is_audited])
    output = finish(process)
    assert process.returncode == -signal.SIGKILL, output
    allow_mmengine_checkpoints()


@pytest.mark.parametrize(
    ('write', 'time'),
    [
        ('checkpoint', 1),
        ('pointer', 1),
        ('pointer', 2),
        ('clean pointer', 2),
        ('published', 1),
    ],
)
def test_nothing_is_left_half_written(tmp_path, write, time):
    kill(tmp_path, WRITES[write], time)

    left = list(tmp_path.glob('*.pth'))
    assert left
    assert [p.name for p in left if scan_file(p).status != 'read'] == []
    if (write, time) == ('pointer', 1):
        # There is none yet.
        assert list(tmp_path.glob('last_*')) == []
        return
    for name in ('last_checkpoint', 'last_clean_checkpoint'):
        assert Path((tmp_path / name).read_text()) in left
    assert choose_resume(str(tmp_path)) == (None, '')


@pytest.mark.parametrize('write', ['checkpoint', 'pointer'])
def test_without_the_audit_it_is(tmp_path, write):
    """The file that the test above guards is broken without the audit."""
    kill(tmp_path, WRITES[write], 1, is_audited=False)
    last = Path((tmp_path / 'last_checkpoint').read_text())
    if write == 'pointer':
        assert not last.is_file()
    else:
        assert not last.exists()  # removed, and the next one is broken
        (broken,) = tmp_path.glob('*.pth')
        assert scan_file(broken).status == 'unreadable'
