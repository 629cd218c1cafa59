"""Rarer settings of DeepSpeed, and steps that fail, leave no trace either."""

import json

import pytest
from ranks import launch, needs_deepspeed

pytestmark = needs_deepspeed


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('settings')
    launch('deepspeed_settings_job.py', work_dir)
    return [
        json.loads((work_dir / f'rank_{rank}.json').read_text())
        for rank in range(2)
    ]


def test_a_struck_window_leaves_no_trace_whatever_the_settings(ranks):
    for rank in ranks:
        assert [seen for seen in rank['varied'] if seen['wrongs']] == []
    # All classes that are known, but for the one of FusedAdam.
    assert {seen['optimizer'] for seen in ranks[0]['varied']} == {
        'AdamW',
        'FP16_UnfusedOptimizer',
        'BF16_Optimizer',
        'DeepSpeedZeroOptimizer',
        'DeepSpeedZeroOptimizer_Stage3',
    }


def test_optimizers_of_deepspeed_leave_no_trace_either(ranks):
    for rank in ranks:
        assert [seen for seen in rank['own'] if seen['wrongs']] == []
    optimizers = {seen['kind'][2] for seen in ranks[0]['own']}
    assert optimizers >= {'FusedAdam', 'DeepSpeedCPUAdam'}
    assert 'FP16_Optimizer' in {seen['optimizer'] for seen in ranks[0]['own']}


@pytest.mark.parametrize(
    ('what', 'cause'),
    [('stepped', 'step_nonfinite'), ('refused', 'norm_overflow')],
)
def test_a_step_that_fails_is_undone(ranks, what, cause):
    for rank in ranks:
        for seen in rank[what]:
            assert seen['told'] == [[4, cause]], seen
            assert seen['differing'] == [], seen
            assert seen['skipped'] == 1
