"""Schedules may count updates: a rejected one does not advance them."""

from copy import deepcopy

import pytest
from mmengine.hooks import EMAHook, ParamSchedulerHook
from mmengine.registry import LOOPS
from toys import LeaveOutLoop, assert_same, guard_hooks, make_runner, wrapper

from mmnanguard.core import GuardConfigError
from mmnanguard.hooks import NanGuardHook


@LOOPS.register_module()
class LeaveOutOfSchedulesLoop(LeaveOutLoop):
    """The oracle: schedules do not see iterations that are left out."""

    never_told = (EMAHook, ParamSchedulerHook)


WARM_UP = dict(type='LinearLR', start_factor=0.1, end=4, by_epoch=False)
SCHEDULES = {
    'warm-up, cosine': [
        WARM_UP,
        dict(
            type='CosineAnnealingLR', begin=4, end=12, T_max=12, by_epoch=False
        ),
    ],
    'steps, momentum': [
        dict(type='MultiStepLR', milestones=[3, 6, 7], by_epoch=False),
        dict(type='LinearMomentum', start_factor=0.5, end=8, by_epoch=False),
    ],
    'one cycle': [
        dict(type='OneCycleLR', eta_max=0.1, total_steps=12, by_epoch=False)
    ],
    'restarts': [
        dict(
            type='CosineRestartLR',
            periods=[4, 8],
            restart_weights=[1, 0.5],
            eta_min=0.01,
            by_epoch=False,
        )
    ],
}


def train(
    work_dir,
    schedule,
    counts='updates',
    faults=(),
    leave_out=(),
    accumulation=1,
    loop='LeaveOutOfSchedulesLoop',
    **changes,
):
    hooks = guard_hooks(*(dict(iter=n, site='loss') for n in faults))
    hooks['nan_guard'] = dict(type='mmnanguard.NanGuardHook', schedule=counts)
    runner = make_runner(
        work_dir,
        wrapper(accumulative_counts=accumulation),
        default_hooks=hooks,
        param_scheduler=deepcopy(SCHEDULES[schedule]),
        train_cfg=dict(type=loop, max_iters=12, leave_out=leave_out),
        max_iters=12,
        **changes,
    )
    runner.train()
    return runner


def progress(runner):
    """Return what the schedulers keep, and the values that they have set."""
    states = [kept.state_dict() for kept in runner.param_schedulers]
    group = runner.optim_wrapper.param_groups[0]
    return states, group['lr'], group['momentum']


@pytest.mark.parametrize('schedule', SCHEDULES)
def test_equals_the_run_without_those_iterations(tmp_path, schedule):
    struck = train(tmp_path / 'struck', schedule, faults=(1, 3, 4, 8))
    oracle = train(tmp_path / 'oracle', schedule, leave_out=(1, 3, 4, 8))
    assert_same(struck, oracle)
    assert progress(struck) == progress(oracle)


# MMEngine's schedulers step before the first window ends.
@pytest.mark.filterwarnings('ignore:Detected call of `scheduler.step')
@pytest.mark.parametrize('fault', [4, 5, 6])
def test_a_rejected_window_advances_nothing(tmp_path, fault):
    keys = dict(schedule='warm-up, cosine', accumulation=3)
    struck = train(tmp_path / 'struck', faults=(fault,), **keys)
    oracle = train(tmp_path / 'oracle', leave_out=(4, 5, 6), **keys)
    assert_same(struck, oracle)
    assert progress(struck) == progress(oracle)


def test_by_default_schedules_count_iterations(tmp_path):
    keys = dict(schedule='warm-up, cosine', loop='LeaveOutLoop')
    struck = train(tmp_path / 'a', counts='iterations', faults=(3, 8), **keys)
    oracle = train(
        tmp_path / 'b', counts='iterations', leave_out=(3, 8), **keys
    )
    assert_same(struck, oracle)
    assert progress(struck) == progress(oracle)
    assert struck.param_schedulers[0].last_step == 3
    counted = train(tmp_path / 'c', faults=(3, 8), **keys)
    assert progress(counted) != progress(struck)


def test_a_resumed_run_goes_on_with_the_schedule(tmp_path):
    """The checkpoint of a rejected iteration has the schedule before it."""
    schedule = 'warm-up, cosine'
    whole = train(tmp_path / 'whole', schedule, faults=(2, 5))
    checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=5)
    hooks = guard_hooks(dict(iter=2, site='loss'), dict(iter=5, site='loss'))
    hooks['nan_guard'] = dict(
        type='mmnanguard.NanGuardHook', schedule='updates'
    )
    runners = []
    for resume, max_iters in ((False, 5), (True, 12)):
        runner = make_runner(
            tmp_path / 'resumed',
            wrapper(),
            default_hooks={**hooks, 'checkpoint': checkpoint},
            param_scheduler=deepcopy(SCHEDULES[schedule]),
            resume=resume,
            train_cfg=dict(type='LeaveOutLoop', max_iters=max_iters),
            max_iters=12,
        )
        runner.train()
        runners.append(runner)
    assert_same(runners[-1], whole)
    assert progress(runners[-1]) == progress(whole)


def test_a_wrong_value_is_refused():
    with pytest.raises(GuardConfigError, match="'iterations' or 'updates'"):
        NanGuardHook(schedule='steps')


def test_schedules_of_epochs_go_on(tmp_path):
    rates = []
    for counts in ('iterations', 'updates'):
        hooks = guard_hooks(dict(iter=10, site='loss'))
        hooks['nan_guard'] = dict(
            type='mmnanguard.NanGuardHook', schedule=counts
        )
        runner = make_runner(
            tmp_path,
            wrapper(),
            default_hooks=hooks,
            param_scheduler=[dict(type='StepLR', step_size=1)],
            train_cfg=dict(by_epoch=True, max_epochs=3),
        )
        runner.train()
        rates.append(runner.optim_wrapper.param_groups[0]['lr'])
    assert rates[0] == rates[1] < 0.1
