"""Runs of jobs in a process that finds mmpretrain and torchvision, which `make
test` installs apart from the other packages.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGES = Path(sys.prefix) / 'mmpretrain'
REASON = f'needs requirements/mmpretrain.txt in {PACKAGES}'
needs_mmpretrain = pytest.mark.skipif(not PACKAGES.is_dir(), reason=REASON)


def run_job(job, *args, stdin=None):
    """Run a script of the tests in mmpretrain's environment and return the
    JSON of its last line. ``stdin`` is its standard input.
    """
    path = (TESTS / 'mmpretrain_env', PACKAGES, TESTS.parent, TESTS)
    done = subprocess.run(
        [sys.executable, TESTS / job, *args],
        input=stdin,
        env={
            **os.environ,
            'PYTHONPATH': os.pathsep.join(map(str, path)),
            'PYTHONWARNINGS': 'ignore',
            # Tiny operations wait for one another on a busy machine.
            'OMP_NUM_THREADS': '1',
        },
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
