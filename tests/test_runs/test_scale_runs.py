"""The loss scale in real runs: overflows are cured, and poles leave it alone.

Each run has a model whose gradients overflow float16, or are NaN at any scale,
in chosen iterations. MMEngine's own wrapper runs beside it.
"""

import json
from pathlib import Path

import baseline  # noqa: F401  MMEngine's own AMP wrapper on a CPU
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from ranks import launch
from toys import guard_hooks, make_runner, read_rows, wrapper

from mmnanguard.core import Autopsy
from mmnanguard.hooks import GuardListener
from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER

pytestmark = pytest.mark.skipif(
    not HAS_CPU_SCALER, reason='float16 on a CPU needs torch>=2.3'
)
BATCH_SIZE = 4


@MODELS.register_module()
class PoleNet(BaseModel):
    """A regression whose float16 gradients can be made to fail.

    Args:
        poles: Iterations, from 0, with a square root at 0: NaN at any scale.
        large: Iterations whose gradient in float16 is larger by ``factor``.
        factor: The factor on these gradients.
        gain: The factor on all losses.
    """

    def __init__(self, poles=(), large=(), factor=1.0, gain=1.0):
        super().__init__()
        self.poles, self.large = poles, large
        self.factor, self.gain = factor, gain
        self.body = torch.nn.Linear(3, 8)
        self.head = torch.nn.Linear(8, 2)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        images = torch.stack(list(inputs)).mean((2, 3))
        outputs = self.head(torch.relu(self.body(images)))
        if mode != 'loss':
            return outputs
        position = int(data_samples[0].img_path[-10:-4]) // BATCH_SIZE
        loss = (outputs.float() - images[:, :2]).square().mean()
        if position in self.poles:
            loss = loss + (outputs.float() * 0).square().sum().sqrt()
        if position in self.large:
            loss = loss * self.factor
        return dict(loss=loss * self.gain)


def train(work_dir, type_, scale, hooks=None, num_iters=60, keys=(), **model):
    runner = make_runner(
        work_dir,
        wrapper(
            type_,
            dtype='float16',
            loss_scale=scale,
            optimizer='AdamW',
            lr=0.01,
            **dict(keys),
        ),
        model=dict(type='PoleNet', **model),
        max_iters=num_iters,
        default_hooks=hooks or {},
    )
    runner.train()
    return runner


def guarded(work_dir, scale, hooks=None, **keys):
    hooks = {**guard_hooks(), **(hooks or {})}
    return train(work_dir, 'NanGuardAmpOptimWrapper', scale, hooks, **keys)


def plain(work_dir, scale, **keys):
    return train(work_dir, 'CpuAmpOptimWrapper', scale, **keys)


def weights(runner):
    return torch.cat([p.detach().flatten() for p in runner.model.parameters()])


def scale_of(runner):
    return runner.optim_wrapper.loss_scaler.get_scale()


@pytest.mark.parametrize('gain', [1.0, 3e-8])
def test_poles_train_as_beside_mmengines_static_scale(tmp_path, gain):
    """Each tenth batch has a square root at 0, and small losses underflow."""
    keys = dict(poles=tuple(range(1, 60, 10)), gain=gain)
    left = plain(tmp_path / 'plain', 4096.0, **keys)
    right = guarded(tmp_path / 'guarded', 4096.0, **keys)
    assert torch.equal(weights(left), weights(right))
    rows = read_rows(right)
    assert [row['iter'] for row in rows] == [2, 12, 22, 32, 42, 52]
    for row in rows:
        assert row['loss_scale'] == {'before': 4096.0, 'after': 4096.0}
        assert row['cause'] == 'grad_nonfinite'
        assert not row['scale_blamed']
    (log,) = Path(right.log_dir).glob('*.log')
    assert 'loss scale stays at 4096: it is not the likely cause' in (
        log.read_text()
    )


@pytest.mark.parametrize(
    'model',
    [
        # From the start, from iteration 20 on, and in a few batches.
        dict(large=tuple(range(60)), factor=300.0),
        dict(large=tuple(range(20, 60)), factor=300.0),
        dict(large=tuple(range(8, 60, 9)), factor=300.0),
    ],
)
def test_an_overflow_is_cured_as_by_pytorchs_scaler(tmp_path, model):
    left = plain(tmp_path / 'plain', dict(init_scale=65536.0), **model)
    right = guarded(tmp_path / 'guarded', 65536.0, **model)
    assert scale_of(left) == scale_of(right) < 65536.0
    assert torch.equal(weights(left), weights(right))
    assert all(row['scale_blamed'] for row in read_rows(right))


def test_a_loss_that_is_a_sum_trains_as_with_pytorchs_scaler(tmp_path):
    """Such gradients overflow float16 at a scale of 1 as well."""
    keys = dict(gain=1e7, num_iters=80)
    left = plain(tmp_path / 'plain', 'dynamic', **keys)
    right = guarded(tmp_path / 'guarded', 'dynamic', **keys)
    assert scale_of(left) == scale_of(right) < 1.0
    assert torch.equal(weights(left), weights(right))


@pytest.mark.parametrize('accumulation', ['window', 'microbatch'])
def test_accumulation(tmp_path, accumulation):
    right = guarded(
        tmp_path,
        4096.0,
        poles=tuple(range(2, 60, 8)),
        keys=dict(
            accumulative_counts=2, guard=dict(accumulation=accumulation)
        ),
    )
    assert scale_of(right) == 4096.0
    assert len(read_rows(right)) == 8


def test_the_scale_comes_back_over_a_resume(tmp_path):
    hooks = dict(
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4)
    )
    drill = guard_hooks(dict(iter=3, site='grad', value='inf'))
    keys = dict(keys=dict(guard=dict(proven_after=6)))
    hooks = {**hooks, **drill}
    whole = guarded(tmp_path / 'whole', 512.0, hooks, num_iters=12, **keys)
    guarded(tmp_path / 'parts', 512.0, hooks, num_iters=8, **keys)
    runner = make_runner(
        tmp_path / 'parts',
        wrapper(
            'NanGuardAmpOptimWrapper',
            dtype='float16',
            loss_scale=512.0,
            optimizer='AdamW',
            lr=0.01,
            guard=dict(proven_after=6),
        ),
        model=dict(type='PoleNet'),
        max_iters=12,
        default_hooks=hooks,
        resume=True,
    )
    assert scale_of(whole) == 512.0
    (log,) = Path(whole.log_dir).glob('*.log')
    line = 'Iter 9: loss scale 256 -> 512 again: updates are clean again'
    assert log.read_text().count(line) == 1
    runner.train()
    assert scale_of(runner) == 512.0
    assert runner.optim_wrapper.guard.state == whole.optim_wrapper.guard.state


# Replays


class Replay(GuardListener):
    """A stub of the autopsy that has tried the lowest scale."""

    def __init__(self, is_finite, repeats=True):
        self.is_finite = is_finite
        self.repeats = repeats

    def after_guard_event(self, runner, event):
        tried = {'lower_scale': self.is_finite}
        row = Autopsy(id=event.id, repeats=self.repeats).to_row()
        runner.call_hook('after_guard_row', row={**row, 'tried': tried})


@pytest.mark.parametrize(
    ('gain', 'is_finite', 'first', 'later'),
    [
        # Gradients near the limit: the scale is lowered, and comes back.
        (20.0, False, 2048.0, [4096.0] * 8),
        (20.0, True, 2048.0, [2048.0, 1024.0]),
        # Gradients with room: the scale is kept, and is lowered after all.
        (1.0, False, 4096.0, [4096.0] * 8),
        (1.0, True, 4096.0, [2048.0, 1024.0]),
    ],
)
def test_a_replay_decides(tmp_path, gain, is_finite, first, later):
    hooks = {**guard_hooks(), 'replay': Replay(is_finite)}
    runner = guarded(
        tmp_path, 4096.0, hooks, poles=tuple(range(5, 60, 6)), gain=gain
    )
    first_row, *rows = read_rows(runner)
    assert first_row['loss_scale'] == {'before': 4096.0, 'after': first}
    before = [row['loss_scale']['before'] for row in rows]
    assert before[: len(later)] == later
    (log,) = Path(runner.log_dir).glob('*.log')
    finding = 'is finite, so the gradients overflowed'
    if not is_finite:
        finding = 'is not finite either, so the scale is not the cause'
    line = f'Iter 6: a replay at a lower loss scale {finding}; loss scale'
    assert line in log.read_text()


def test_a_fault_that_did_not_repeat_decides_nothing(tmp_path):
    hooks = {**guard_hooks(), 'replay': Replay(False, repeats=False)}
    runner = guarded(tmp_path, 4096.0, hooks, poles=(5,), gain=20.0)
    (row,) = read_rows(runner)
    assert row['loss_scale'] == {'before': 4096.0, 'after': 2048.0}
    assert runner.optim_wrapper.loss_scaler.get_scale() == 2048.0


def test_a_real_autopsy_clears_the_scale(tmp_path):
    """Gradients near the limit: NaN alone may be an overflow, until tried."""
    hooks = dict(autopsy=dict(type='mmnanguard.AutopsyHook'))
    model = dict(poles=tuple(range(5, 60, 6)), gain=20.0)
    # A routine overflow gets no autopsy.
    keys = dict(guard=dict(proven_after=5))
    tried = guarded(tmp_path / 'tried', 4096.0, hooks, keys=keys, **model)
    first, *later = read_rows(tried)
    assert first['loss_scale'] == {'before': 4096.0, 'after': 2048.0}
    for row in later:
        assert row['loss_scale'] == {'before': 4096.0, 'after': 4096.0}
    (log,) = Path(tried.log_dir).glob('*.log')
    assert 'so the scale is not the cause; loss scale 2048 -> 4096' in (
        log.read_text()
    )


def test_bad_gradients_of_one_rank(tmp_path):
    """The ranks find equal evidence and move the scale alike."""
    launch('scale_job.py', tmp_path)
    left, right = [
        json.loads((tmp_path / f'rank{rank}.json').read_text())
        for rank in range(2)
    ]
    assert left == right
    assert left['ranks'] == [[1]] * 5
    # NaN at a scale with room; Inf; a streak of NaN that lowers the scale.
    assert left['blamed'] == [False, True, False, True, True]
    assert left['scales'][3] == 4096.0
    assert left['scales'][6] == 2048.0
    assert min(left['scales'][9:12]) < 2048.0
    assert left['scales'][-1] == 4096.0
