"""A loss that is not finite while its gradients are does no harm.

A mean over no labels is 0/0, with gradients of exactly 0: MMEngine trains on,
and a guarded run must end as well.
"""

import re
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from toys import guard_hooks, make_runner, read_rows, wrapper

from mmnanguard.core.rules.decide import MOST_HARMLESS

NUM_ITERS = 60
LIMITS = dict(max_consecutive_skips=4, max_skip_rate=0.2, skip_rate_window=10)


@MODELS.register_module()
class IgnoringNet(BaseModel):
    """A classifier whose second loss is 0/0 for a batch of ignored labels.

    Args:
        ignored: Every batch is ignored but each ``ignored``-th.
        gradient: The gradient of the second loss on such a batch.
    """

    def __init__(self, ignored=3, gradient=0.0):
        super().__init__()
        self.ignored, self.gradient = ignored, gradient
        self.head = torch.nn.Linear(3, 2)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        logits = self.head(torch.stack(list(inputs)).mean((2, 3)))
        if mode != 'loss':
            return logits
        labels = torch.tensor([sample.label for sample in data_samples])
        position = int(data_samples[0].img_path[-10:-4])
        if position // len(labels) % self.ignored:
            labels = torch.full_like(labels, 255)
        loss = torch.nn.functional.cross_entropy(
            logits, labels, ignore_index=255
        )
        size = logits.mean() * self.gradient
        return dict(loss_cls=loss, loss_size=size)


def train(work_dir, optim_wrapper, hooks=None, **keys):
    runner = make_runner(
        work_dir,
        optim_wrapper,
        model={'type': 'IgnoringNet', **keys},
        max_iters=NUM_ITERS,
        default_hooks=hooks or {},
    )
    runner.train()
    return runner


def weights(runner):
    return runner.model.head.weight.detach().clone()


def log_of(runner):
    (path,) = Path(runner.log_dir).glob('*.log')
    return path.read_text()


@pytest.fixture
def plain(tmp_path):
    """Plain SGD: a gradient of 0 leaves no trace at all."""
    return train(tmp_path / 'plain', sgd('OptimWrapper'))


def sgd(type_, **keys):
    return wrapper(type_, optimizer_keys=dict(momentum=0.0), **keys)


def test_they_neither_halt_nor_roll_back(tmp_path, plain):
    hooks = guard_hooks()
    hooks['rollback'] = dict(type='mmnanguard.RollbackHook')
    guard = dict(LIMITS, when_exhausted='rollback')
    runner = train(
        tmp_path / 'guarded', sgd('NanGuardOptimWrapper', guard=guard), hooks
    )
    assert torch.equal(weights(runner), weights(plain))
    assert read_rows(runner, 'rollback') == []
    state = runner.optim_wrapper.guard.state
    assert (state.num_steps, state.total_skips) == (20, 40)
    assert state.consecutive_skips == 0
    assert not any(state.recent_skips)


def test_the_user_learns_which_part_and_how_often(tmp_path):
    runner = train(tmp_path, sgd('NanGuardOptimWrapper'), guard_hooks())
    rows = read_rows(runner)
    assert len(rows) == 40
    assert [row['counts'] for row in rows] == [False] * 40
    assert rows[-1]['bad_losses'] == {'loss_cls': 40}
    assert rows[-1]['num_iters'] == 60
    # The first ones are shown, then ever fewer.
    lines = re.findall(r'Iter .*loss is NaN.*', log_of(runner))
    assert len(lines) == 6  # 1, 2, 4, 8, 16, 32
    assert lines[0].startswith(
        'Iter 2: loss is NaN while its gradients are finite: loss_cls in 1 '
        'of 2 iterations; update skipped, counts toward no limit, '
        '1 rejected so far'
    )
    assert ': loss_cls in 32 of 48 iterations;' in lines[-1]


def test_finite_gradients_are_no_harm_either(tmp_path):
    """The model learns from them, as it does without a guard."""
    runner = train(
        tmp_path,
        sgd('NanGuardOptimWrapper', guard=LIMITS),
        guard_hooks(),
        gradient=0.5,
    )
    state = runner.optim_wrapper.guard.state
    num_commits = NUM_ITERS - MOST_HARMLESS
    assert (state.num_steps, state.total_skips) == (num_commits, MOST_HARMLESS)
    assert 'MORE THAN ONE IN TEN' in log_of(runner)


def test_bad_gradients_still_count(tmp_path):
    """The halt names the part of the loss, too."""
    with pytest.raises(Exception, match='training halted') as caught:
        train(
            tmp_path,
            sgd('NanGuardOptimWrapper', guard=LIMITS),
            guard_hooks(),
            gradient=float('nan'),
            ignored=1,
        )
    story = str(caught.value)
    assert (
        'Parts of the loss that are not finite: loss_size in 4 of 4 iterations'
    ) in story


@pytest.mark.parametrize('accumulation', ['window', 'microbatch'])
def test_beside_good_micro_batches(tmp_path, accumulation):
    guard = dict(LIMITS, accumulation=accumulation)
    runner = train(
        tmp_path,
        sgd('NanGuardOptimWrapper', guard=guard, accumulative_counts=4),
        guard_hooks(),
        ignored=2,
    )
    state = runner.optim_wrapper.guard.state
    rows = read_rows(runner)
    assert state.num_updates == len(rows) == 15
    assert rows[-1]['bad_losses'] == {'loss_cls': 30}
    # Four windows in a row are reason enough to judge micro-batches apart.
    num_steps = dict(window=11, microbatch=15)[accumulation]
    assert state.num_steps == num_steps
    assert [row['counts'] for row in rows] == [False] * 15


@MODELS.register_module()
class OverflowingNet(IgnoringNet):
    """A classifier whose loss is Inf, while its gradients are finite.

    Args:
        num_idle: Number of forward passes that have gradients of 0.
    """

    def __init__(self, num_idle=0):
        super().__init__(ignored=1)
        self.num_idle = num_idle

    def forward(self, inputs, data_samples=None, mode='tensor'):
        losses = super().forward(inputs, data_samples, mode)
        self.num_idle -= 1
        weight = float(self.num_idle < 0)
        return dict(loss_cls=losses['loss_cls'] * weight + float('inf'))


@pytest.mark.parametrize('accumulation', ['window', 'microbatch'])
@pytest.mark.parametrize('counts', [1, 2])
def test_a_loss_that_is_never_finite_does_not_stop_learning(
    tmp_path, accumulation, counts
):
    """Updates are committed, as MMEngine would do."""
    keys = dict(type='OverflowingNet', num_idle=MOST_HARMLESS * counts)
    plain = sgd('OptimWrapper', accumulative_counts=counts)
    without = train(tmp_path / 'plain', plain, **keys)
    guarded = sgd(
        'NanGuardOptimWrapper',
        guard=dict(LIMITS, accumulation=accumulation),
        accumulative_counts=counts,
    )
    runner = train(
        tmp_path / 'guarded', guarded, guard_hooks(), type='OverflowingNet'
    )
    assert torch.equal(weights(runner), weights(without))
    state = runner.optim_wrapper.guard.state
    assert state.total_skips == MOST_HARMLESS
    assert state.num_steps == NUM_ITERS // counts - MOST_HARMLESS
    rows = read_rows(runner)
    assert [row['action'] for row in rows[:MOST_HARMLESS]] == (
        ['skip'] * MOST_HARMLESS
    )
    assert {row['action'] for row in rows[MOST_HARMLESS:]} == {'step'}
    log = log_of(runner)
    assert log.count('GRADIENTS ARE FINITE') == 1  # said once
    assert 'Look at loss_cls in ' in log
