"""mmpretrain's momentum encoders and prototypes leave no trace either."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = Path(sys.prefix) / 'mmpretrain'
TESTS = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    not PACKAGES.is_dir(),
    reason=f'needs requirements/mmpretrain.txt in {PACKAGES}',
)


@pytest.fixture(scope='module')
def results():
    path = (TESTS / 'mmpretrain_env', PACKAGES, TESTS.parent)
    done = subprocess.run(
        [sys.executable, TESTS / 'test_runs' / 'selfsup_job.py'],
        env={
            **os.environ,
            'PYTHONPATH': os.pathsep.join(map(str, path)),
            'PYTHONWARNINGS': 'ignore',
            'OMP_NUM_THREADS': '1',
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ('name', 'changed'),
    [
        ('moco', 'encoder_k.module.0.conv1.weight'),
        ('byol', 'target_net.module.0.conv1.weight'),
        ('swav', 'head.loss_module.prototypes.weight'),  # it is trained, too
    ],
)
def test_parameters_that_forward_changes(results, name, changed):
    result = results[name]
    assert changed in result['changed']
    assert result['num_skips'] == 2
    assert result['differ'] == []
