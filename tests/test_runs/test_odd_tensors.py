"""Models and batches that hold all kinds of tensors, in guarded runs.

Each run is a process: some kernels end the interpreter.
"""

import subprocess
import sys
from pathlib import Path

import pytest

JOB = Path(__file__).with_name('odd_tensors_job.py')


@pytest.mark.parametrize(
    ('role', 'change'),
    [
        ('buffers', 'none'),
        ('buffers', 'write'),
        ('buffers', 'replace'),
        ('buffers', 'resize'),
        ('buffers', 'drop'),
        ('parameters', 'none'),
        ('parameters', 'write'),
        ('batch', 'none'),
    ],
)
def test_equals_the_plain_run(role, change, tmp_path):
    done = subprocess.run(
        [sys.executable, JOB, role, change, tmp_path],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith('equal\n')
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'Traceback' not in log
    assert 'cannot write' not in log
    if role == 'buffers':
        assert log.count('odd.opaque (Opaque)') == 1
        assert log.count('odd.copyable (Copyable)') == 1
