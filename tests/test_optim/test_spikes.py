"""Spikes in real runs are skipped without a trace, or only reported."""

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from torch import nn
from toys import (
    ToyData,
    assert_same,
    guard_hooks,
    loader,
    make_runner,
    read_rows,
    wrapper,
)

SPIKE = dict(threshold=9, window=8, warmup=4)
STRUCK = (9, 15)


@DATASETS.register_module()
class LoudData(ToyData):
    """A dataset in which some batches of 4 are far too large, but finite."""

    def __init__(self, size, loud=(), by=40.0):
        super().__init__(size)
        for number in loud:
            for item in self.items[4 * (number - 1) : 4 * number]:
                item['inputs'] = item['inputs'] * by


@MODELS.register_module()
class PlainNet(BaseModel):
    """A model without a norm layer, which would hide a loud sample."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        features = self.conv(torch.stack(list(inputs))).relu().mean((2, 3))
        labels = torch.tensor([s.label for s in data_samples])
        return dict(
            loss=nn.functional.cross_entropy(self.head(features), labels)
        )


def train(work_dir, loud=STRUCK, max_iters=20, data=20, **keys):
    guard = keys.pop('guard', dict(spike=SPIKE))
    runner = make_runner(
        work_dir,
        wrapper(
            *keys.pop('type', ()),
            lr=0.01,
            guard=guard,
            **keys.pop('wrapper', {}),
        ),
        train_dataloader=loader(
            dict(type='LoudData', size=4 * data, loud=loud)
        ),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=8),
            **guard_hooks(),
        ),
        max_iters=max_iters,
        model=dict(type='PlainNet'),
        **keys,
    )
    runner.train()
    return runner


@pytest.mark.parametrize(
    ('type_', 'keys'),
    [
        ((), {}),
        ((), dict(clip_grad=dict(max_norm=0.5))),
        (
            ('NanGuardAmpOptimWrapper',),
            dict(dtype='float16', loss_scale=dict(init_scale=8, max_scale=8)),
        ),
    ],
    ids=['fp32', 'clipped', 'fp16'],
)
def test_skipped_spikes_leave_no_trace(tmp_path, type_, keys):
    runner = train(tmp_path / 'a', type=type_, wrapper=keys)
    rows = read_rows(runner)
    assert [(row['iter'], row['cause']) for row in rows] == [
        (number, 'spike') for number in STRUCK
    ]
    for row in rows:
        assert row['action'] == 'skip'
        assert row['spike']['value'] > row['spike']['limit']
        assert row['params'][0]['kind'] == 'huge'
        assert row['samples'][0] == f'train/{4 * (row["iter"] - 1):06d}.jpg'
    oracle = train(tmp_path / 'b', type=type_, wrapper=keys, leave_out=STRUCK)
    assert_same(runner, oracle)
    states = [
        trained.optim_wrapper.guard.state for trained in (runner, oracle)
    ]
    assert states[0].recent_norms == states[1].recent_norms
    assert states[0].recent_losses == states[1].recent_losses


def test_clipped_spikes_are_told_and_committed(tmp_path):
    spike = dict(SPIKE, action='clip')
    runner = train(tmp_path / 'clip', guard=dict(spike=spike))
    rows = read_rows(runner)
    assert [row['iter'] for row in rows] == list(STRUCK)
    assert all(row['action'] == 'step' for row in rows)
    first = rows[0]
    assert first['clip_coef'] == pytest.approx(
        first['spike']['mean'] / first['spike']['value'], rel=1e-6
    )
    assert runner.optim_wrapper.guard.state.num_steps == 20
    assert runner.optim_wrapper.guard.state.total_skips == 0


def test_a_resumed_run_remembers(tmp_path):
    whole = train(tmp_path / 'whole')
    train(tmp_path / 'parts', max_iters=8)
    resumed = train(tmp_path / 'parts', resume=True)
    assert [row['iter'] for row in read_rows(resumed)] == list(STRUCK)
    assert_same(whole, resumed)
    states = [
        trained.optim_wrapper.guard.state for trained in (whole, resumed)
    ]
    assert states[0] == states[1]


def test_without_the_rule_nothing_is_kept(tmp_path):
    runner = train(tmp_path, guard=None)
    assert read_rows(runner) == []
    assert runner.optim_wrapper.guard.state.recent_norms == ()
    assert torch.isfinite(next(runner.model.parameters())).all()
