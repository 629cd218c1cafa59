"""The command for a real GPU, tried on the simulated one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

ROOT = Path(__file__).parents[2]
needs_simulation = pytest.mark.skipif(
    not hasattr(
        backend_registration, '_setup_privateuseone_for_python_backend'
    ),
    reason='needs torch>=2.9, which can register a device in Python',
)


def run(*options, python=('-W', 'ignore')):
    script = ROOT / 'benchmarks' / 'gpu.py'
    return subprocess.run(
        [sys.executable, *python, str(script), *options],
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': ''},
        capture_output=True,
        text=True,
        timeout=600,
    )


@needs_simulation
def test_one_file_and_one_table(tmp_path):
    done = run(
        *('--simulated-device', '--quick', '--out', str(tmp_path)),
        *('--parts', 'iterations', 'monitor', 'tests'),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / 'gpu.json').read_text())
    assert results['machine']['name'] == 'simulated'
    rows = results['parts']['iterations']
    assert len(rows) == 8
    for row in rows:
        # The guard waits as often as MMEngine, which reads the norm to clip.
        assert row['waits'] == 1
        assert row.get('rejected', 0) == 0
    rows = results['parts']['monitor']
    assert [row['side'] for row in rows] == ['sampled', 'mmnanguard'] * 2
    for sampled, other in zip(rows[::2], rows[1::2]):
        assert sampled['waits'] == other['waits'] + 1
        assert 'percent_at_interval' in sampled
    (tests,) = results['parts']['tests']
    assert 'passed' in tests['summary']
    table = (tmp_path / 'gpu.md').read_text()
    assert '| tiny-resnet | stand-in | float16 | mmnanguard |' in table
    assert table in done.stdout


def test_without_a_device(tmp_path):
    done = run('--out', str(tmp_path))
    assert done.returncode == 2
    assert '--simulated-device tries this command on a CPU' in done.stderr


def test_without_torch():
    # -S leaves out all that is installed.
    done = run(python=('-S',))
    assert done.returncode == 1
    assert 'GPU_PYTHON=/path/to/python' in done.stderr
