"""Tests that need a GPU run here on a simulated one, in their own process.

A process cannot take the device back, and other tests must not see it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

TESTS = Path(__file__).parent
MARKED = re.compile(r'pytest\.mark\.gpu(_too)?\b')


@pytest.mark.skipif(
    not hasattr(
        backend_registration, '_setup_privateuseone_for_python_backend'
    ),
    reason='needs torch>=2.9, which can register a device in Python',
)
def test_on_a_simulated_device():
    files = [
        str(path)
        for path in sorted(TESTS.glob('test_*/test_*.py'))
        if MARKED.search(path.read_text(encoding='utf-8'))
    ]
    assert len(files) > 8
    done = subprocess.run(
        [
            *(sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider'),
            *('--simulated-device', '-m', 'gpu or gpu_too', *files),
        ],
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    skips = re.findall(r'^SKIPPED .*', done.stdout, re.MULTILINE)
    assert all('real_only: ' in skip for skip in skips), skips
