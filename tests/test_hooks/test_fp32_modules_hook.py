"""Chosen modules, or those that an autopsy blames, run in float32."""

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn
from toys import guard_hooks, make_runner, read_rows, wrapper

from mmnanguard.core import GuardConfigError

FP16 = wrapper(
    'NanGuardAmpOptimWrapper',
    lr=1e-3,
    dtype='float16',
    loss_scale=16.0,
    guard=dict(proven_after=0, max_consecutive_skips=50),
)


@MODELS.register_module()
class Unstable(BaseModel):
    """Its depthwise conv overflows float16, and nothing else does."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.blocks = nn.ModuleList([DepthwiseConv(4), DepthwiseConv(4)])
        nn.init.constant_(self.blocks[1].conv.weight, 3e5)
        self.norm = nn.GroupNorm(1, 4)
        self.head = ToyHead(4)
        self.dtypes = {}

    def forward(self, inputs, data_samples=None, mode='tensor'):
        features = self.stem(torch.stack(list(inputs)))
        for block in self.blocks:
            features = block(features)
            self.dtypes[id(block)] = features.dtype
        features = self.norm(features.float()).mean((2, 3))
        return self.head.loss(features)


class DepthwiseConv(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, groups=channels)

    def forward(self, features):
        return self.conv(features)


class ToyHead(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Linear(channels, 1)

    def loss(self, features):
        self.dtype = self.fc(features).dtype
        return dict(loss=self.fc(features).float().square().mean())


def train(work_dir, resume=False, max_iters=8, **keys):
    hooks = guard_hooks()
    hooks['autopsy'] = dict(type='mmnanguard.AutopsyHook')
    hooks['fp32'] = dict(type='mmnanguard.Fp32ModulesHook', **keys)
    hooks['checkpoint'] = dict(
        type='CheckpointHook', by_epoch=False, interval=1
    )
    runner = make_runner(
        work_dir,
        FP16,
        model=dict(type='Unstable'),
        default_hooks=hooks,
        max_iters=max_iters,
        resume=resume,
    )
    runner.train()
    return runner


def test_the_model_heals_itself(tmp_path):
    runner = train(tmp_path, auto=True)
    rows = read_rows(runner)
    assert [row['iter'] for row in rows] == [1]
    (autopsy,) = read_rows(runner, 'autopsy')
    assert autopsy['module'] == 'blocks.1.conv'
    assert autopsy['dtype'] == 'float16'
    assert autopsy['dtype_max'] == 65504
    assert autopsy['fp32_is_finite']
    (remedy,) = read_rows(runner, 'remedy')
    assert remedy['id'] == rows[0]['id']
    assert "modules=['blocks.1.conv']" in remedy['config']


def test_without_auto_each_update_is_skipped(tmp_path):
    rows = read_rows(train(tmp_path))
    assert len(rows) == 8


def test_a_remedy_survives_a_resume(tmp_path):
    train(tmp_path, auto=True, max_iters=4)
    resumed = train(tmp_path, auto=True, resume=True)
    # Both starts write to one folder if they fall in one second.
    assert [r for r in read_rows(resumed) if r['attempt'] == 2] == []


@pytest.mark.parametrize(
    'pattern', ['blocks.1', 'blocks.1.conv', 're:blocks.*', 'type:Conv2d']
)
def test_patterns(tmp_path, pattern):
    runner = train(tmp_path, modules=[pattern])
    assert read_rows(runner) == []
    first, second = map(id, runner.model.blocks)
    assert runner.model.dtypes[second] is torch.float32
    only_one = pattern.startswith('blocks')
    half = torch.float16 if only_one else torch.float32
    assert runner.model.dtypes[first] is half


def test_a_method(tmp_path):
    runner = train(tmp_path, modules=['head.loss', 'blocks.1'])
    assert runner.model.head.dtype is torch.float32
    assert 'loss' not in vars(runner.model.head)  # undone after training


@pytest.mark.parametrize('pattern', ['block.1', 're:nothing', 'head.lose'])
def test_a_pattern_that_matches_nothing(tmp_path, pattern):
    with pytest.raises(GuardConfigError, match='Near names: ') as error:
        train(tmp_path, modules=[pattern])
    assert pattern in str(error.value)
