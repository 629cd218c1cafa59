"""Every registered hook and wrapper can be built, run, saved, resumed, run on
two ranks, and removed again.
"""

import inspect
import json

import pytest
from baseline import CpuAmpOptimWrapper
from contracts import (
    FAULT,
    HOOK_NAMES,
    WRAPPER_NAMES,
    hook_config,
    train,
    wrapper_config,
)
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from ranks import launch
from toys import assert_finite, assert_same, read_rows

from mmnanguard.registry import HOOKS, OPTIM_WRAPPERS

LISTENER_METHODS = {'after_guard_event', 'after_guard_row', 'after_audit'}
# Called by other hooks, see roles.py.
ROLE_METHODS = {'bad_samples', 'keep_requests', 'origin_of', 'request'}
WRAPPER_METHODS = {'add_fact', 'open_window'}
PLAIN = {
    'NanGuardOptimWrapper': OptimWrapper,
    'NanGuardAmpOptimWrapper': CpuAmpOptimWrapper,
}
each_hook = pytest.mark.parametrize('name', HOOK_NAMES)
each_wrapper = pytest.mark.parametrize('name', WRAPPER_NAMES)


def public_methods(cls):
    return {
        name
        for name, _ in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith('_')
    }


@pytest.fixture(scope='module')
def without(tmp_path_factory):
    """Train a clean run without a further hook."""
    return train(tmp_path_factory.mktemp('without'))


@pytest.fixture(scope='module')
def left_out(tmp_path_factory):
    """Train without the iteration that would get the fault."""
    work_dir = tmp_path_factory.mktemp('left_out')
    return train(work_dir, leave_out=[FAULT['iter']])


# Hooks


@each_hook
def test_a_hook_is_built_from_a_config(name):
    config = hook_config(name)
    hook = HOOKS.build(config)
    assert isinstance(hook, Hook)
    assert type(hook).__name__ == name
    assert config == hook_config(name)


@each_hook
def test_a_hook_has_no_public_method_that_nobody_calls(name):
    known = public_methods(Hook) | LISTENER_METHODS | ROLE_METHODS
    assert public_methods(HOOKS.get(name)) - known == set()


@each_hook
def test_a_hook_can_be_resumed_and_removed(tmp_path, without, name):
    """A clean run has equal weights in all four ways, bit for bit."""
    with_hook = train(tmp_path / 'with', name)
    assert_same(with_hook, without)
    saved = tmp_path / 'with' / 'iter_2.pth'
    assert_same(train(tmp_path / 'resumed', name, resume_from=saved), without)
    assert_same(train(tmp_path / 'removed', resume_from=saved), without)


@each_hook
def test_a_rejected_update_leaves_no_trace_with_a_hook(
    tmp_path, left_out, name
):
    runner = train(tmp_path / 'fault', name, faults=[FAULT])
    assert_same(runner, left_out)
    (row,) = read_rows(runner)
    assert row['iter'] == FAULT['iter']


# Optimizer wrappers


@each_wrapper
def test_a_wrapper_has_no_public_method_that_nobody_calls(name):
    known = public_methods(AmpOptimWrapper) | WRAPPER_METHODS
    assert public_methods(OPTIM_WRAPPERS.get(name)) - known == set()


@each_wrapper
def test_a_wrapper_can_be_resumed_and_removed(tmp_path, name):
    guarded = train(tmp_path / 'guarded', wrapper_name=name)
    assert type(guarded.optim_wrapper).__name__ == name
    saved = tmp_path / 'guarded' / 'iter_2.pth'
    resumed = train(tmp_path / 'a', wrapper_name=name, resume_from=saved)
    assert_same(resumed, guarded)
    plain = dict(wrapper_config(name), type=PLAIN[name])
    removed = train(tmp_path / 'b', optim_wrapper=plain, resume_from=saved)
    assert_same(removed, guarded)


@each_wrapper
def test_a_rejected_update_leaves_no_trace_with_a_wrapper(tmp_path, name):
    runner = train(tmp_path / 'fault', wrapper_name=name, faults=[FAULT])
    assert_finite(runner)
    left_out = train(
        tmp_path / 'left out', wrapper_name=name, leave_out=[FAULT['iter']]
    )
    assert_same(runner, left_out)


# Two ranks


def test_all_hooks_and_wrappers_run_and_resume_on_two_ranks(tmp_path):
    launch('contract_job.py', tmp_path)
    ranks = [
        json.loads((tmp_path / f'rank_{rank}.json').read_text())
        for rank in range(2)
    ]
    assert sorted(ranks[0]) == sorted(HOOK_NAMES + WRAPPER_NAMES)
    assert ranks[0] == ranks[1]
    for name, (first, resumed) in ranks[0].items():
        assert first == resumed, name
    (plain,) = {ranks[0][name][0] for name in HOOK_NAMES}
    assert ranks[0]['NanGuardOptimWrapper'][0] == plain
