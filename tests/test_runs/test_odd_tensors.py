"""Models and batches that hold all kinds of tensors, in guarded runs.

Each run is a process: some kernels end the interpreter.
"""

from pathlib import Path

import pytest
from ranks import finish, start

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
        ('optimizer', 'none'),
    ],
)
def test_equals_the_plain_run(role, change, tmp_path):
    process = start([JOB, role, change, tmp_path])
    output = finish(process)
    assert process.returncode == 0, output[-3000:]
    assert output.endswith('equal\n')
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'Traceback' not in log
    assert 'cannot write' not in log
    if role == 'buffers':
        assert log.count('odd.opaque (Opaque)') == 1
        assert log.count('odd.copyable (Copyable)') == 1
