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


def test_the_loss_scale_grows_when_deepspeeds_own_would(ranks):
    for rank in ranks:
        for seen in rank['grown']:
            assert seen['wrongs'] == [], seen['kind']
            # It has grown, from 128.
            assert seen['scale'] > 128


def test_a_scale_that_no_loss_has_is_left_alone(ranks):
    """DeepSpeed 0.19 with ZeRO 0 divides by it, but does not scale."""
    for rank in ranks:
        if rank['is_scaled']:
            pytest.skip('this DeepSpeed scales losses with ZeRO 0')
        assert rank['unscaled']['wrongs'] == []


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
