"""Whole runs with a real Runner, one story for each cause and action."""

import math
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from toys import (
    assert_finite,
    assert_same,
    everything,
    guard_hooks,
    make_runner,
    read_rows,
    wrapper,
)

from mmnanguard.core import Cause, TrainingHalted

GUARDED = wrapper('NanGuardOptimWrapper', optimizer='AdamW', lr=0.01)
FP16 = wrapper(
    'NanGuardAmpOptimWrapper',
    optimizer='AdamW',
    lr=0.01,
    dtype='float16',
    loss_scale=1024,
    guard=dict(proven_after=4),
)


def make(tmp_path, optim=GUARDED, faults=(), **changes):
    return make_runner(
        tmp_path, optim, default_hooks=guard_hooks(*faults), **changes
    )


def test_skip_lower_and_go_on(tmp_path):
    """The run has routine and proven overflows, a bad loss, a bad buffer."""
    runner = make(
        tmp_path,
        FP16,
        [
            dict(iter=2, site='grad', value='inf'),
            dict(iter=7, site='grad', value='nan'),
            dict(iter=8, site='loss', value='inf'),
            dict(iter=9, site='buffer', value='nan'),
        ],
    )
    runner.train()
    story = [
        (
            row['iter'],
            row['cause'],
            row['loss_scale']['after'],
            row['consecutive_skips'],
            row['total_skips'],
        )
        for row in read_rows(runner)
    ]
    assert story == [
        (2, 'scale_overflow', 512.0, 0, 0),
        # Four clean commits bring the scale back, and one NaN at a scale with
        # room does not lower it.
        (7, 'grad_nonfinite', 1024.0, 1, 1),
        # The gradients of a loss + inf are finite.
        (8, 'loss_nonfinite', 1024.0, 1, 2),
        (9, 'buffer_nonfinite', 1024.0, 2, 3),
    ]
    state = runner.optim_wrapper.guard.state
    assert (state.num_updates, state.num_steps) == (10, 6)
    assert state.consecutive_skips == 0
    assert state.routine_overflows == 1
    assert_finite(runner)


class FlagInput(Hook):
    """Raise a device flag before forward, as a guard of inputs does."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        is_bad = runner.iter + 1 == 3
        runner.optim_wrapper.add_fact('input', torch.tensor(is_bad))


def test_a_flagged_input(tmp_path):
    runner = make(tmp_path / 'run', custom_hooks=[FlagInput()])
    runner.train()
    oracle = make(tmp_path / 'oracle', leave_out=(3,))
    oracle.train()
    assert_same(runner, oracle)
    (row,) = read_rows(runner)
    assert (row['iter'], row['cause']) == (3, 'input_nonfinite')
    assert row['samples'][0] == 'train/000008.jpg'


def test_halt_tells_the_whole_story_and_commits_nothing_bad(tmp_path):
    optim = {**GUARDED, 'guard': dict(max_consecutive_skips=3)}
    faults = [
        dict(iter=n, site='grad', where='head.bias') for n in (2, 5, 6, 7)
    ]
    runner = make(tmp_path / 'run', optim, faults)
    with pytest.raises(TrainingHalted) as caught:
        runner.train()
    assert runner.iter + 1 == 7
    oracle = make(
        tmp_path / 'oracle', optim, max_iters=7, leave_out=(2, 5, 6, 7)
    )
    oracle.train()
    assert_same(runner, oracle)

    story = str(caught.value)
    for word in (
        'halted at iteration 7',
        '3 in a row since iteration 5, 4 in all',
        'grad_nonfinite x3',
        "'head.bias' x3",
        'What to try',
        'max_consecutive_skips=3',
    ):
        assert word in story
    rows = read_rows(runner)
    assert [row['action'] for row in rows] == ['skip', 'skip', 'skip', 'halt']
    (halt,) = read_rows(runner, 'halt')
    assert halt['id'] == rows[-1]['id']
    assert halt['story'] == story


def test_the_skip_rate_halts(tmp_path):
    optim = {**GUARDED, 'guard': dict(skip_rate_window=6, max_skip_rate=0.5)}
    faults = [dict(iter=n, site='grad') for n in (2, 4, 5, 6, 8)]
    runner = make(tmp_path, optim, faults)
    with pytest.raises(TrainingHalted):
        runner.train()
    # Iterations 1 to 6 were skipped 4 times of 6.
    assert runner.iter + 1 == 6


def test_halting_comes_after_all_consequences(tmp_path):
    """A hook that dumps or logs must still see the last event."""
    seen = []

    class Last(Hook):
        priority = 'LOWEST'

        def after_guard_event(self, runner, event):
            seen.append(event.action.value)

    optim = {**GUARDED, 'guard': dict(max_consecutive_skips=1)}
    runner = make(
        tmp_path, optim, [dict(iter=2, site='grad')], custom_hooks=[Last()]
    )
    with pytest.raises(TrainingHalted):
        runner.train()
    assert seen == ['halt']


def test_weights_that_go_bad_between_two_iterations(tmp_path):
    fault = dict(iter=4, site='weight', value='inf', where='head.weight')
    runner = make(tmp_path, GUARDED, [fault])
    with pytest.raises(TrainingHalted) as caught:
        runner.train()
    assert caught.value.event.cause is Cause.WEIGHT_NONFINITE
    assert "weight 'head.weight' is Inf" in str(caught.value)
    assert 'Resume from a checkpoint' in str(caught.value)
    (row,) = read_rows(runner)
    assert (row['iter'], row['action']) == (4, 'halt')
    assert row['cause'] == 'weight_nonfinite'
    bad = row['params'][0]
    assert (bad['name'], bad['tensor']) == ('head.weight', 'weight')


def test_1e38_in_one_sample_is_caught_at_the_running_variance(tmp_path):
    """Loss and gradients may stay finite: the buffer alone shows it."""
    fault = dict(iter=3, site='activation', value=1e38, where='backbone.0')
    runner = make(tmp_path / 'run', GUARDED, [fault])
    runner.train()
    oracle = make(tmp_path / 'oracle', GUARDED, leave_out=(3,))
    oracle.train()
    assert_same(runner, oracle)
    (row,) = read_rows(runner)
    assert row['cause'] in ('buffer_nonfinite', 'loss_nonfinite')


def test_without_any_hook_the_wrapper_is_enough(tmp_path):
    faults = [dict(iter=3, site='grad'), dict(iter=5, site='activation')]
    hooks = dict(fire_drill=guard_hooks(*faults)['fire_drill'])
    runner = make_runner(tmp_path / 'run', GUARDED, default_hooks=hooks)
    runner.train()
    oracle = make_runner(tmp_path / 'oracle', GUARDED, leave_out=(3, 5))
    oracle.train()
    assert_same(runner, oracle)
    (log,) = Path(runner.log_dir).glob('*.log')
    assert log.read_text().count('update skipped') == 2
    assert 'Iter 3: gradient of' in log.read_text()


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
def test_both_loops(tmp_path, loop):
    loops = dict(
        epochs=dict(by_epoch=True, max_epochs=2),
        iterations=dict(by_epoch=False, max_iters=20),
    )
    runner = make(
        tmp_path, GUARDED, [dict(iter=13, site='grad')], train_cfg=loops[loop]
    )
    runner.train()
    (row,) = read_rows(runner)
    assert row['iter'] == 13
    expected = (2, 2) if loop == 'epochs' else (1, 12)
    assert (row['epoch'], row['batch_idx']) == expected


# Resuming, with the released MMEngine on a PyTorch that refuses its
# checkpoints


@pytest.mark.gpu_too
def test_resume_equals_the_uninterrupted_run(tmp_path):
    # The scale comes back after iteration 7, and overflows at once.
    faults = [
        dict(iter=2, site='grad', value='inf'),
        dict(iter=5, site='loss'),
        dict(iter=8, site='grad', value='inf'),
    ]
    whole = make(tmp_path / 'whole', FP16, faults)
    whole.train()

    hooks = guard_hooks(*faults)
    hooks['checkpoint'] = dict(
        type='CheckpointHook', interval=1, by_epoch=False
    )
    first = make_runner(
        tmp_path / 'parts', FP16, default_hooks=hooks, max_iters=6
    )
    first._train_dataloader['dataset'] = whole.train_dataloader.dataset
    first.train()
    second = make_runner(
        tmp_path / 'parts', FP16, default_hooks=hooks, resume=True
    )
    second.train()

    assert_same(second, whole)
    assert second.optim_wrapper.guard.state == whole.optim_wrapper.guard.state
    assert second.optim_wrapper.loss_scaler.get_scale() == 512.0
    start = read_rows(second, 'start')[-1]
    assert start['attempt'] == 2
    assert start['iter'] == 7
    assert start['run'] == first.optim_wrapper.guard.run


def test_a_plain_run_goes_on_guarded_and_back(tmp_path):
    hooks = dict(
        checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False)
    )
    plain = wrapper('OptimWrapper', optimizer='AdamW', lr=0.01)
    whole = make_runner(tmp_path / 'whole', plain)
    whole.train()
    runs = [(plain, 3), (GUARDED, 6), (plain, 10)]
    for optim, max_iters in runs:
        runner = make_runner(
            tmp_path / 'parts',
            optim,
            # The hook lets PyTorch load what MMEngine has saved.
            default_hooks={**hooks, **guard_hooks()},
            max_iters=max_iters,
            resume=max_iters > 3,
        )
        runner._train_dataloader['dataset'] = whole.train_dataloader.dataset
        runner.train()
    assert_same(runner, whole)


def test_tensors_stay_what_they_are(tmp_path):
    """Rejections reuse tensors: optimizers hold them by identity."""
    runner = make(tmp_path, GUARDED, [dict(iter=1, site='activation')])
    before = {name: id(t) for name, t in runner.model.named_buffers()}
    runner.train()
    after = {name: id(t) for name, t in runner.model.named_buffers()}
    assert before == after
    assert not any(
        math.isnan(t.float().sum()) for t in everything(runner).values()
    )


def test_a_streak_goes_on_over_a_resume(tmp_path):
    hooks = guard_hooks(*(dict(iter=n, site='grad') for n in (4, 5, 6)))
    hooks['checkpoint'] = dict(
        type='CheckpointHook', by_epoch=False, interval=4
    )
    keys = dict(default_hooks=hooks)
    first = make_runner(tmp_path, wrapper(), max_iters=4, **keys)
    first.train()
    resumed = make_runner(tmp_path, wrapper(), resume=True, **keys)
    resumed.train()
    rows = read_rows(resumed)
    assert [(r['iter'], r['since']) for r in rows if r['iter'] > 4] == [
        (5, 4),
        (6, 4),
    ]
