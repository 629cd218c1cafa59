"""Autopsies of planted faults are right.

The training state is compared with a run without autopsies, bit for bit.
"""

import pytest
from autopsy_job import PATIENTS, faults_of
from beside_mmpretrain import PACKAGES, REASON, run_job

# A process for each: the one of mmpretrain's has its path.
GROUPS = [list(PATIENTS)[:2], list(PATIENTS)[2:]]


@pytest.fixture(scope='module', params=GROUPS, ids=['toys', 'mmpretrain'])
def wrong(request):
    patients = request.param
    if 'swin' in patients and not PACKAGES.is_dir():
        pytest.skip(REASON)
    return patients, run_job('test_runs/autopsy_job.py', *patients)


def test_all_are_right(wrong):
    patients, results = wrong
    num_right = sum(not differs for differs in results.values())
    print(f'{num_right} of {len(results)} autopsies are right')
    assert len(results) == sum(len(faults_of(patient)) for patient in patients)
    assert {
        name: differs for name, differs in results.items() if differs
    } == {}
