"""Faults leave no trace in mmpretrain's momentum encoders and prototypes."""

import pytest
from beside_mmpretrain import needs_mmpretrain, run_job

pytestmark = needs_mmpretrain


@pytest.fixture(scope='module')
def results():
    return run_job('test_runs/selfsup_job.py')


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
