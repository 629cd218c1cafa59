"""Adaptive clipping, in runs of MMEngine and on two ranks."""

import json
from pathlib import Path

import matrix
import pytest
from mmengine.logging import MMLogger
from ranks import launch, needs_fsdp
from toys import assert_same, guard_hooks, make_runner, wrapper

from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER

CLIPS = {
    'TieredClip': dict(type='TieredClip', tiers=[(1, 0.01), (0, 0.05)]),
    'AutoClip': dict(type='mmnanguard.AutoClip', percentile=30, window=4),
    'ZClip': dict(type='ZClip', warmup=2, alpha=0.5, max_norm=0.1),
    'AdaptiveGradClip': dict(type='AdaptiveGradClip', exclude=['head']),
}


def train(work_dir, clip, stop=8, resume=False):
    hooks = guard_hooks(dict(iter=3, site='loss'), dict(iter=6, site='grad'))
    hooks['checkpoint'] = dict(
        type='CheckpointHook', by_epoch=False, interval=4
    )
    # As a config file holds it: the same dict for each run.
    runner = make_runner(
        work_dir,
        wrapper(clip_grad=CLIPS[clip], lr=0.05),
        default_hooks=hooks,
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=stop),
        resume=resume,
    )
    runner.train()
    return runner


def scalars_of(runner):
    path = Path(runner.log_dir) / 'vis_data' / 'scalars.json'
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize('clip', CLIPS)
def test_a_run_that_is_resumed_equals_the_uninterrupted_one(tmp_path, clip):
    whole = train(tmp_path / 'whole', clip)
    train(tmp_path / 'parts', clip, stop=4)
    parts = train(tmp_path / 'parts', clip, resume=True)
    assert_same(whole, parts)
    rule = whole.optim_wrapper.guard.clip_rule
    assert parts.optim_wrapper.guard.clip_rule == rule
    assert whole.optim_wrapper.guard.state.total_skips == 2


@pytest.mark.parametrize('clip', CLIPS)
def test_what_is_told_of_it(tmp_path, clip):
    runner = train(tmp_path, clip)
    guard = runner.optim_wrapper.guard
    text = Path(MMLogger.get_current_instance().log_file).read_text()
    # A long line is wrapped.
    text = ' '.join(text.split())
    assert f', {guard.grad_rule or guard.clip_rule} halts at' in text
    coefs = [row.get('guard/clip_coef') for row in scalars_of(runner)]
    if clip == 'AdaptiveGradClip':
        assert coefs == [None] * 8
    else:
        assert all(0 < coef <= 1 for coef in coefs)
        assert min(coefs) < 1


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """Return the results of the two ranks."""
    work_dir = tmp_path_factory.mktemp('clip')
    launch('clip_ranks_job.py', work_dir)
    paths = sorted(work_dir.glob('rank_*.json'))
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
@pytest.mark.parametrize('clip', matrix.ADAPTIVE)
def test_ranks_remember_the_same_and_nothing_of_a_fault(
    ranks, precision, clip
):
    if precision == 'fp16' and not HAS_CPU_SCALER:
        pytest.skip('float16 on a CPU needs torch>=2.3')
    first, second = (rank['seen'][f'{precision} {clip}'] for rank in ranks)
    assert first == second
    assert first['causes'] == ['grad_nonfinite'] * 2
    assert first['rule'] == first['oracle']
    assert first['differing'] == []


@needs_fsdp
def test_units_of_sharded_parameters_are_refused(ranks):
    for rank in ranks:
        assert len(rank['refusals']) == 4
        for way, text in rank['refusals'].items():
            assert 'sharded or flattened' in text, way
