"""Averaged weights are as if a rejected window had never been."""

import pytest
import torch
from mmengine.hooks import EMAHook
from toys import guard_hooks, make_runner, wrapper


def train(work_dir, accumulation=1, faults=(), leave_out=(), **ema):
    faults = [dict(iter=number, site='loss') for number in faults]
    runner = make_runner(
        work_dir,
        wrapper(accumulative_counts=accumulation),
        default_hooks=guard_hooks(*faults),
        custom_hooks=[dict(type='EMAHook', momentum=0.1, **ema)],
        leave_out=leave_out,
        max_iters=12,
    )
    runner.train()
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    return hook.ema_model.state_dict()


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        # The mask of -inf averages to NaN.
        assert torch.equal(
            tensor.reshape(-1).view(torch.uint8),
            right[name].reshape(-1).view(torch.uint8),
        ), name


@pytest.mark.parametrize(
    'ema',
    [{}, dict(update_buffers=True), dict(begin_iter=6), dict(priority='HIGH')],
    ids=['plain', 'update_buffers', 'begins late', 'before the guard'],
)
def test_a_rejected_update_moves_no_average(tmp_path, ema):
    faulty = train(tmp_path, faults=(1, 4, 8), **ema)
    clean = train(tmp_path, leave_out=(1, 4, 8), **ema)
    assert_same(faulty, clean)


@pytest.mark.parametrize('fault', [4, 5, 6])
def test_a_rejected_window_moves_no_average(tmp_path, fault):
    faulty = train(tmp_path, accumulation=3, faults=(fault,))
    clean = train(tmp_path, accumulation=3, leave_out=(4, 5, 6))
    assert_same(faulty, clean)


def test_without_faults_the_average_is_mmengines(tmp_path):
    hooks = [dict(type='EMAHook', momentum=0.1)]
    averages = [train(tmp_path)]
    plain = make_runner(
        tmp_path, wrapper('OptimWrapper'), custom_hooks=hooks, max_iters=12
    )
    plain.train()
    (hook,) = [hook for hook in plain.hooks if isinstance(hook, EMAHook)]
    averages.append(hook.ema_model.state_dict())
    assert_same(*averages)
