"""Two ranks that stop and resume, or run updates again, end as if they had
not.
"""

import json

import pytest
from ranks import launch, needs_fsdp


@pytest.mark.parametrize(
    'way',
    [
        'ddp',
        pytest.param('local', marks=needs_fsdp),
        pytest.param('full', marks=needs_fsdp),
    ],
)
def test_resume_equals_the_uninterrupted_run(tmp_path, way):
    launch('strategy_job.py', tmp_path, way)
    ranks = [
        json.loads((tmp_path / f'rank_{rank}.json').read_text())
        for rank in range(2)
    ]
    assert ranks[0]['resumed']['run'] == ranks[1]['resumed']['run']
    assert ranks[0]['resumed']['rng'] != ranks[1]['resumed']['rng']
    for seen in ranks:
        assert seen['num_tensors'] >= 4
        assert seen['differing'] == []
        whole, resumed = seen['uninterrupted'], seen['resumed']
        for key in ('state', 'scale', 'growth', 'rng'):
            assert resumed[key] == whole[key], key
        assert resumed['run'] == seen['first']['run']
        assert resumed['attempt'] == 2
        assert whole['state']['total_skips'] == 2
        assert seen['traces'] == []  # of autopsies
    (autopsy,) = ranks[0]['autopsies']
    assert autopsy['exact']
    assert set(autopsy['outputs']) == {'data_preprocessor', 'net'}
