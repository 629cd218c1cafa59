"""Faults planted into models, and what the autopsies say: right of total.

The training state is compared with a run without autopsies, bit for bit.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from autopsy_job import PATIENTS, faults_of

PACKAGES = Path(sys.prefix) / 'mmpretrain'
TESTS = Path(__file__).parents[1]
# A process for each: the one of mmpretrain's has its path.
GROUPS = [list(PATIENTS)[:2], list(PATIENTS)[2:]]


@pytest.fixture(scope='module', params=GROUPS, ids=['toys', 'mmpretrain'])
def wrong(request):
    patients = request.param
    path = [TESTS, TESTS.parent]
    if 'swin' in patients:
        if not PACKAGES.is_dir():
            pytest.skip(f'needs requirements/mmpretrain.txt in {PACKAGES}')
        path = [TESTS / 'mmpretrain_env', PACKAGES, *path]
    done = subprocess.run(
        [sys.executable, TESTS / 'test_runs' / 'autopsy_job.py', *patients],
        env={
            **os.environ,
            'PYTHONPATH': os.pathsep.join(map(str, path)),
            'PYTHONWARNINGS': 'ignore',
            'OMP_NUM_THREADS': '1',
        },
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return patients, json.loads(done.stdout.splitlines()[-1])


def test_all_are_right(wrong):
    patients, found = wrong
    num_right = sum(not differs for differs in found.values())
    print(f'{num_right} of {len(found)} autopsies are right')
    assert len(found) == sum(len(faults_of(one)) for one in patients)
    assert {name: differs for name, differs in found.items() if differs} == {}
