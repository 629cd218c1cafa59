"""Count how often the host waits for the device, stage by stage.

A wait is a transfer that blocks, an ``item`` or an operation whose shape
depends on values; ``accelerator.count_waits`` counts them.
"""

import matrix
import pytest
import torch
from accelerator import count_waits
from mmengine.hooks import Hook
from toys import guard_hooks, make_runner, wrapper

from mmnanguard.optim import NanGuardAmpOptimWrapper, NanGuardOptimWrapper

pytestmark = pytest.mark.gpu
NUM_FIRST = 3  # updates that also look for changing tensors


def sgd(params):
    return torch.optim.SGD(params, lr=0.01, momentum=0.9)


def capturable(params):
    params = list(params)
    lr = torch.full((), 0.01, device=params[0].device)
    return torch.optim.AdamW(params, lr=lr, capturable=True)


CLEAN = {
    'float32': dict(),
    'float16': dict(dtype='float16', loss_scale=64.0),
    'bfloat16': dict(dtype='bfloat16'),
    'norm': dict(clip_grad=dict(max_norm=0.1)),
    'value': dict(clip_grad=dict(type='value', clip_value=0.01)),
    'tiered': dict(clip_grad=dict(type='TieredClip', tiers=[(0, 0.1)])),
    'auto': dict(clip_grad=dict(type='AutoClip', percentile=50)),
    'z': dict(clip_grad=dict(type='ZClip')),
    'adaptive': dict(clip_grad=dict(type='AdaptiveGradClip')),
    'fused': dict(optimizer=matrix.OPTIMIZERS['fused']),
    'fused float16': dict(
        optimizer=matrix.OPTIMIZERS['fused'],
        clip_grad=dict(max_norm=0.1),
        dtype='float16',
    ),
    'capturable': dict(optimizer=capturable),
    'accumulated': dict(accumulative_counts=3),
}


def build(device, optimizer=sgd, **keys):
    model = matrix.Net().to(device)
    type_ = NanGuardOptimWrapper
    if 'dtype' in keys:
        type_ = NanGuardAmpOptimWrapper
    return model, type_(optimizer=optimizer(model.parameters()), **keys)


def update(model, wrapper, images, factor=1.0):
    """Run one update and return how often the host waited."""
    with count_waits() as waits:
        for _ in range(wrapper._accumulative_counts):
            with wrapper.optim_context(model):
                loss = model(images).square().mean() * factor
            wrapper.update_params(loss)
    return waits.count


@pytest.mark.parametrize('kind', CLEAN)
def test_a_clean_update_waits_once(device, kind):
    model, wrapper = build(device, **CLEAN[kind])
    images = torch.randn(4, 1, 5, 5).to(device)
    for _ in range(NUM_FIRST):
        update(model, wrapper, images)
    assert [update(model, wrapper, images) for _ in range(3)] == [1, 1, 1]
    assert wrapper.guard.state.total_skips == 0


def test_a_checked_step_waits_twice(device):
    model, wrapper = build(device, guard=dict(check_step='always'))
    images = torch.randn(4, 1, 5, 5).to(device)
    for _ in range(NUM_FIRST):
        update(model, wrapper, images)
    assert update(model, wrapper, images) == 2


def test_a_rejected_update_does_not_wait_for_each_tensor(device):
    """The number of waits does not grow with the number of bad tensors."""
    counts = []
    for depth in (8, 32):
        layers = [torch.nn.Linear(3, 3) for _ in range(depth)]
        model = torch.nn.Sequential(*layers).to(device)
        wrapper = NanGuardOptimWrapper(optimizer=sgd(model.parameters()))
        images = torch.randn(4, 3).to(device)
        for _ in range(NUM_FIRST + 1):
            update(model, wrapper, images)
        counts.append(update(model, wrapper, images, factor=float('nan')))
        assert wrapper.guard.state.total_skips == 1
    assert counts[0] == counts[1]


# Whole iterations, compared with MMEngine's own


class CountWaits(Hook):
    """Count the waits of each iteration, hooks included."""

    priority = 'VERY_HIGH'

    def __init__(self):
        self.counts = []

    def before_train(self, runner):
        run_iter = runner.train_loop.run_iter

        def counted(data_batch):
            with count_waits() as waits:
                run_iter(data_batch)
            self.counts.append(waits.count)

        runner.train_loop.run_iter = counted


def count_iterations(work_dir, type_='NanGuardOptimWrapper', keys=(), **hooks):
    hooks = dict(logger=dict(type='LoggerHook', interval=100), **hooks)
    counter = CountWaits()
    runner = make_runner(
        work_dir,
        wrapper(type_, clip_grad=dict(max_norm=1.0), **dict(keys)),
        default_hooks=hooks,
        custom_hooks=[counter],
        max_iters=FAULT['iter'],
    )
    runner.train()
    return counter.counts


FAULT = dict(iter=7, site='grad')
# A hook, the iteration in which it works, and how often it waits there.
STAGES = {
    'guard': ({}, 6, 0),
    'kept state': (dict(type='RollbackHook', interval=6), 6, 1),
    'audit': (dict(type='StateAuditHook', interval=6), 6, 1),
    'inputs': (dict(type='InputGuardHook'), 6, 0),
    'sample': (dict(type='StabilityMonitorHook', interval=5), 6, 1),
    'no sample': (dict(type='StabilityMonitorHook', interval=25), 5, 0),
    'dump': (dict(type='BatchDumpHook'), 7, 0),
}


@pytest.fixture(scope='module')
def references(tmp_path_factory):
    """Waits of plain iterations, and of guarded ones with a fault."""
    plain = tmp_path_factory.mktemp('plain')
    guarded = tmp_path_factory.mktemp('guarded')
    return (
        count_iterations(plain, 'OptimWrapper'),
        count_iterations(guarded, **guard_hooks(FAULT)),
    )


@pytest.mark.parametrize('stage', STAGES)
def test_waits_of_a_stage(tmp_path, references, stage):
    """The guard adds nothing where MMEngine reads the norm to clip."""
    hook, iteration, expected = STAGES[stage]
    plain, rejected = references
    faults = [FAULT] if iteration == FAULT['iter'] else []
    hooks = guard_hooks(*faults)
    if hook:
        type_ = f'mmnanguard.{hook["type"]}'
        hooks['stage'] = {**hook, 'type': type_}
    counts = count_iterations(tmp_path, **hooks)
    reference = rejected if faults else plain
    assert counts[iteration - 1] - reference[iteration - 1] == expected


# What is rare may wait for each operation or tensor, but not for more. A pass
# has 49 operations; weights, buffers and optimizer are 14 tensors.
RARE = {
    'autopsy': (dict(type='AutopsyHook'), {}, 8 * 49),
    'rollback': (
        dict(type='RollbackHook', interval=3),
        dict(max_consecutive_skips=2, when_exhausted='rollback'),
        8 * 14,
    ),
}


@pytest.mark.parametrize('stage', RARE)
def test_waits_of_a_rare_stage(tmp_path, stage):
    hook, guard, most = RARE[stage]
    hooks = guard_hooks(dict(FAULT, iter=FAULT['iter'] - 1), FAULT)
    plain = count_iterations(tmp_path / 'plain', **hooks)
    hooks['stage'] = {**hook, 'type': f'mmnanguard.{hook["type"]}'}
    counts = count_iterations(
        tmp_path / stage, keys=dict(guard=guard), **hooks
    )
    extra = sum(counts[-2:]) - sum(plain[-2:])
    assert 0 < extra <= most
    # Between two kept states, the iterations before wait as they did.
    assert counts[3:5] == plain[3:5]
