"""Chosen modules, or those that an autopsy blames, run in float32."""

import copy
import pickle

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn
from toys import guard_hooks, make_runner, read_rows, wrapper

from mmnanguard.core import GuardConfigError
from mmnanguard.hooks.replay.fp32_modules_hook import in_fp32

FP16 = wrapper(
    'NanGuardAmpOptimWrapper',
    lr=1e-3,
    dtype='float16',
    loss_scale=16.0,
    guard=dict(proven_after=0, max_consecutive_skips=50),
)


@MODELS.register_module()
class Unstable(BaseModel):
    """A model of which only the depthwise conv overflows float16."""

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


@MODELS.register_module()
class Difficult(BaseModel):
    """A model whose blocks overflow float16 in various ways; norms end it."""

    def __init__(self, *kinds):
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.blocks = nn.ModuleList(BLOCKS[kind]() for kind in kinds)
        self.head = nn.Linear(4, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        features = self.stem(torch.stack(list(inputs)).mean((2, 3)))
        for block in self.blocks:
            features = block.use(features)
        return dict(loss=self.head(features).float().square().mean())


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        nn.init.constant_(self.fc.weight, 3e4)

    def forward(self, x):
        return self.fc(x * 4)

    def use(self, x):
        return normed(self(x))


class ByMethod(Block):
    """A block like a head: its ``loss`` is called, not its ``forward``."""

    def use(self, x):
        return normed(self.loss(x))

    def loss(self, x):
        return nn.functional.linear(x * 4, self.fc.weight)


class InList(Block):
    def forward(self, *, many):
        return self.fc(many[0] * 4)

    def use(self, x):
        return normed(self(many=[x]))


class Writes(Block):
    """A block that writes into half-precision memory, where float32 does not
    fit.
    """

    def use(self, x):
        out = torch.zeros_like(x, dtype=torch.float16)
        out[torch.arange(len(x))] = self(x)
        return normed(out)


def normed(x):
    x = x.float()
    return x / (x.abs().amax(1, keepdim=True) + 1)


BLOCKS = dict(plain=Block, by_method=ByMethod, in_list=InList, writes=Writes)


def train_difficult(work_dir, *kinds, **keys):
    hooks = guard_hooks()
    hooks['autopsy'] = dict(type='mmnanguard.AutopsyHook')
    hooks['fp32'] = dict(type='mmnanguard.Fp32ModulesHook', **keys)
    runner = make_runner(
        work_dir,
        FP16,
        model=Difficult(*kinds),
        default_hooks=hooks,
        max_iters=6,
    )
    runner.train()
    return runner


@pytest.mark.parametrize(
    ('kinds', 'targets'),
    [
        (['plain'], ['blocks.0.fc']),
        (['plain'] * 3, ['blocks.0.fc', 'blocks.1.fc', 'blocks.2.fc']),
        (['by_method'], ['blocks.0.loss']),
        (['in_list'], ['blocks.0.fc']),
    ],
)
def test_one_after_the_other_is_healed(tmp_path, kinds, targets):
    runner = train_difficult(tmp_path, *kinds, auto=True)
    rows = read_rows(runner)
    assert [row['iter'] for row in rows] == [*range(1, len(targets) + 1)]
    remedies = read_rows(runner, 'remedy')
    assert [row['module'] for row in remedies] == targets


def test_a_remedy_that_does_not_fit_is_not_taken(tmp_path):
    runner = train_difficult(tmp_path, 'writes', auto=True)
    assert runner.iter == 6
    (row,) = read_rows(runner, 'autopsy')
    assert row['fp32_is_finite'] is None  # it raises there
    assert row['remedy'] == ''
    assert read_rows(runner, 'remedy') == []


@pytest.mark.parametrize('pattern', ['blocks.0', 'type:InList'])
def test_tensors_in_lists_and_keywords(tmp_path, pattern):
    runner = train_difficult(tmp_path, 'in_list', modules=[pattern])
    assert read_rows(runner) == []


def test_a_copy_of_a_module_has_its_own_weights():
    model = Difficult('plain')
    with in_fp32(model, 'blocks.0'):
        twin = copy.deepcopy(model)
        nn.init.zeros_(twin.blocks[0].fc.weight)
        nn.init.zeros_(twin.blocks[0].fc.bias)
        assert twin.blocks[0](torch.ones(1, 4)).abs().max() == 0
        pickle.loads(pickle.dumps(model))
    assert 'forward' not in vars(model.blocks[0])


def test_a_remedy_for_what_is_gone_is_left_out(tmp_path):
    train(tmp_path, auto=True, max_iters=4)
    path = tmp_path / 'iter_4.pth'
    checkpoint = torch.load(path, weights_only=False)
    assert checkpoint['nanguard_fp32_modules'] == ['blocks.1.conv']
    checkpoint['nanguard_fp32_modules'].append('blocks.7.conv')
    torch.save(checkpoint, path)
    resumed = train(tmp_path, auto=True, resume=True)
    assert resumed.iter == 8
