"""A rejected update is run again, and what went bad first is named."""

import math
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn
from toys import (
    assert_same,
    guard_hooks,
    loader,
    make_data,
    make_runner,
    read_rows,
    wrapper,
)

needs_stance = pytest.mark.skipif(
    not hasattr(torch.compiler, 'set_stance'),
    reason='code is compiled in a replay, too, before torch 2.6',
)
POISON = 'train/000013.jpg'  # the second sample of the fourth iteration


@MODELS.register_module()
class Patient(BaseModel):
    """A CNN with attention, dropout and a mask of -inf.

    ``ill`` names the part that goes bad on inputs above 100.
    """

    def __init__(self, ill='nowhere'):
        super().__init__()
        self.ill = ill
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        nn.init.uniform_(self.conv.weight, 0.1, 0.3)
        self.norm = nn.BatchNorm2d(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.dropout = nn.Dropout(0.5)
        self.head = Head()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        images = torch.stack(list(inputs))
        signal = images.flatten(1).amax(1)
        features = self.conv(images.clamp(max=10.0))
        if self.ill == 'functional':
            features = features / (signal < 100)[:, None, None, None]
        elif self.ill == 'module':
            huge = 1 + 3e35 * (signal > 100)
            features = self.conv(images * huge[:, None, None, None])
        elif self.ill == 'norm':  # its loss and gradients stay finite
            huge = 1 + 1e27 * (signal > 100)
            features = self.conv(images * huge[:, None, None, None])
        tokens = self.norm(features).relu().flatten(2).transpose(1, 2)
        mask = tokens.new_full((36, 36), -math.inf).triu(1)
        tokens, _ = self.attention(tokens, tokens, tokens, attn_mask=mask)
        tokens = self.dropout(tokens).mean(1)
        if self.ill == 'backward':
            tokens = tokens + (tokens * (signal < 100)[:, None]).abs().sqrt()
        logits = self.head(tokens)
        if self.ill == 'sum':
            logits = logits + (logits * 0 + 1e38).sum() * 0
        return self.head.loss(logits, signal, self.ill == 'loss')


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 1)

    def forward(self, tokens):
        return self.fc(tokens)

    def loss(self, logits, signal, is_ill):
        errors = logits.square().mean(1)
        if is_ill:
            errors = errors + torch.log((signal < 100).float())
        return dict(loss=errors.mean())


def train(work_dir, ill='nowhere', value=1e3, hooks=(), **keys):
    data = make_data(keys.pop('num_data', 24))
    num_ill = keys.pop('num_ill', 1)
    for index in keys.pop('bad', (13, 15)[:num_ill]):
        data[index]['inputs'] += value
    runner = make_runner(
        work_dir,
        keys.pop('optim_wrapper', wrapper(lr=0.01)),
        model=dict(type='Patient', ill=ill),
        train_dataloader=loader(data),
        default_hooks={
            **guard_hooks(*keys.pop('faults', ())),
            'autopsy': dict(type='mmnanguard.AutopsyHook'),
            **dict(hooks),
        },
        max_iters=keys.pop('max_iters', 6),
        **keys,
    )
    runner.train()
    return runner


@pytest.mark.parametrize(
    ('ill', 'phase', 'module', 'op'),
    [
        ('functional', 'forward', '', 'aten.div'),
        ('module', 'forward', 'conv', 'aten.convolution'),
        ('norm', 'forward', 'norm', 'aten.native_batch_norm'),
        ('loss', 'loss', 'head', 'aten.log'),
        ('backward', 'backward', '', 'aten.div'),
    ],
)
def test_the_culprit_is_named(tmp_path, ill, phase, module, op):
    runner = train(tmp_path, ill)
    (event,) = read_rows(runner)
    (row,) = read_rows(runner, 'autopsy')
    assert event['iter'] == 4
    assert row['id'] == event['id']
    assert (row['phase'], row['module'], row['op']) == (phase, module, op)
    # Also where an operation mixes all samples, as a BatchNorm's statistics.
    assert row['samples'] == [POISON]
    assert row['repeats']
    assert row['source'].startswith('test_autopsy_hook.py:')


def test_a_sum_over_the_batch_blames_nobody(tmp_path):
    """The sum is small enough without any half of the batch."""
    runner = train(tmp_path, 'sum', value=0.0, max_iters=2)
    row = read_rows(runner, 'autopsy')[0]
    assert row['op'] == 'aten.sum'
    assert row['samples'] == []


def test_samples_of_several_batches_are_named(tmp_path):
    """More of them than the replays of similar updates."""
    bad = tuple(range(1, 40, 8))  # in every other batch
    runner = train(tmp_path, 'norm', bad=bad, num_data=40, max_iters=10)
    rows = read_rows(runner, 'autopsy')
    assert len(read_rows(runner)) == len(bad)
    names = [[f'train/{index:06d}.jpg'] for index in bad]
    assert [row['samples'] for row in rows] == names


@pytest.mark.gpu_too
def test_a_bad_input(tmp_path):
    (row,) = read_rows(train(tmp_path, value=math.nan), 'autopsy')
    assert row['phase'] == 'input'

    assert row['samples'] == [POISON]
    assert row['batch_rows'] == [1]


def test_all_bad_inputs_are_named(tmp_path):
    (row,) = read_rows(train(tmp_path, value=math.nan, num_ill=2), 'autopsy')
    assert row['samples'] == [POISON, 'train/000015.jpg']


def test_the_micro_batch_is_told(tmp_path):
    runner = train(
        tmp_path,
        'module',
        optim_wrapper=wrapper(lr=0.01, accumulative_counts=3),
    )
    (event,) = read_rows(runner)
    (row,) = read_rows(runner, 'autopsy')
    assert event['iter'] == 6
    assert row['samples'] == [POISON]
    assert row['batch_rows'] == [1]


def test_a_transient_fault(tmp_path):
    runner = train(tmp_path, faults=[dict(iter=4, site='loss')], value=0.0)
    (row,) = read_rows(runner, 'autopsy')
    assert not row['repeats']
    assert row['exact']  # the batch is, whatever became of it
    assert row['phase'] == row['remedy'] == ''


@pytest.mark.gpu_too
def test_outputs_of_the_children(tmp_path):
    runner = train(tmp_path, 'functional')
    (row,) = read_rows(runner, 'autopsy')
    outputs = row['outputs']
    assert set(outputs) == {
        'data_preprocessor',
        'conv',
        'norm',
        'attention',
        'dropout',
        'head',
    }
    assert outputs['conv']['is_finite']
    assert outputs['conv']['min'] < outputs['conv']['max'] < 100
    assert not outputs['norm']['is_finite']
    # Nothing stays in the place of a method.
    assert all('forward' not in vars(m) for m in runner.model.modules())


def test_no_more_than_asked_for(tmp_path):
    hook = dict(type='mmnanguard.AutopsyHook', max_autopsies=1)
    runner = train(
        tmp_path,
        'module',
        hooks=dict(autopsy=hook),
        faults=[dict(iter=2, site='loss')],
    )
    assert len(read_rows(runner)) == 2
    assert [row['repeats'] for row in read_rows(runner, 'autopsy')] == [False]


def test_a_culprit_is_examined_once(tmp_path):
    faults = [dict(iter=number, site='loss') for number in (2, 3, 5)]
    runner = train(tmp_path, faults=faults, value=0.0)
    assert len(read_rows(runner)) == 3
    assert len(read_rows(runner, 'autopsy')) == 1


def test_a_culprit_is_examined_once_though_resumed(tmp_path):
    hooks = dict(
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1)
    )
    faults = [dict(iter=number, site='loss') for number in (2, 5)]
    keys = dict(hooks=hooks, faults=faults, value=0.0)
    first = train(tmp_path, max_iters=3, **keys)
    assert len(read_rows(first, 'autopsy')) == 1
    resumed = train(tmp_path, resume=True, **keys)
    assert resumed.iter == 6
    # Both starts write to one folder if they fall in one second.
    rows = [r for r in read_rows(resumed) if r['attempt'] == 2]
    assert [row['iter'] for row in rows] == [5]
    examined = {row['id'] for row in read_rows(resumed, 'autopsy')}
    assert rows[0]['id'] not in examined


def test_an_autopsy_that_fails_costs_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(
        'mmnanguard.hooks.replay.window_replay.run_pass', lambda *args: 1 / 0
    )
    runner = train(tmp_path, 'module')
    assert runner.iter == 6
    assert read_rows(runner, 'autopsy') == []


@pytest.mark.filterwarnings('ignore:The .grad attribute of a')
@pytest.mark.parametrize(
    'is_compiled', [False, pytest.param(True, marks=needs_stance)]
)
def test_compiled_code_is_not_replayed(tmp_path, is_compiled):
    runner = train(
        tmp_path,
        faults=[dict(iter=4, site='loss')],
        value=0.0,
        cfg=dict(compile=dict(backend='eager')) if is_compiled else {},
    )
    (path,) = Path(runner.log_dir).glob('*.log')
    (line,) = (
        entry for entry in path.read_text().splitlines() if 'autopsy:' in entry
    )
    assert ('eager did not reproduce it' in line) == is_compiled


@pytest.mark.gpu_too
def test_autopsies_leave_no_trace(tmp_path):
    with_, without = (
        train(
            tmp_path / str(number),
            'module',
            hooks=dict(
                autopsy=dict(
                    type='mmnanguard.AutopsyHook', max_autopsies=number
                )
            ),
            faults=[dict(iter=2, site='loss')],
        )
        for number in (9, 0)
    )
    assert len(read_rows(with_, 'autopsy')) == 2
    assert read_rows(without, 'autopsy') == []
    assert_same(with_, without)
