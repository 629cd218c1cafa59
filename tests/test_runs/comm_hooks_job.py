"""One of two ranks that train with communication hooks of DDP."""

import json
import math
import sys
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.registry import MODELS
from torch import distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import (
    default_hooks,
    post_localSGD_hook,
    powerSGD_hook,
)
from toys import ToyNet, everything, guard_hooks, make_runner, wrapper

from mmnanguard.core import GuardConfigError
from mmnanguard.numerics.base.comm_hooks import HookState

# Before PowerSGD begins, its first iteration, and a later one.
STRUCK = [2, 4, 7]


@MODELS.register_module()
class Struck(ToyNet):
    """A model with a NaN loss on rank 1 in some iterations.

    A replay of the iteration is finite.
    """

    def __init__(self, iters=(), data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.iters = list(iters)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        losses = super().forward(inputs, data_samples, mode)
        now = MessageHub.get_current_instance().get_info('iter') + 1
        if now in self.iters and get_rank() == 1:
            self.iters.remove(now)
            losses['loss_cls'] = losses['loss_cls'] * math.nan
        # The ranks differ, so that there is an error to feed back.
        losses['loss_size'] = losses['loss_size'] * (1 + get_rank())
        return losses


class Register(Hook):
    def __init__(self, make):
        self.make = make

    def before_train(self, runner):
        self.state, hook = self.make()
        runner.model.register_comm_hook(self.state, hook)


def power(hook=powerSGD_hook.powerSGD_hook, **keys):
    def make():
        defaults = dict(
            process_group=None,
            matrix_approximation_rank=1,
            start_powerSGD_iter=3,
            min_compression_rate=0.5,
        )
        return powerSGD_hook.PowerSGDState(**{**defaults, **keys}), hook

    return make


class OwnState(powerSGD_hook.PowerSGDState):
    """A user's state with an attribute of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.norms = []


def own_state():
    def hook(state, bucket):
        state.norms.append(bucket.buffer().norm())
        return powerSGD_hook.powerSGD_hook(state, bucket)

    return OwnState(None, 1, 3, min_compression_rate=0.5), hook


def post_local():
    group = dist.new_subgroups(1)[0]
    state = post_localSGD_hook.PostLocalSGDState(None, group, 4)
    return state, post_localSGD_hook.post_localSGD_hook


class Memory:
    seen = 0


def unknown():
    return Memory(), lambda state, bucket: default_hooks.allreduce_hook(
        None, bucket
    )


MAKERS = {
    'power': power(),
    'cold start': power(warm_start=False),
    'no feedback': power(use_error_feedback=False),
    'neither': power(warm_start=False, use_error_feedback=False),
    'wrapped': power(
        default_hooks.fp16_compress_wrapper(powerSGD_hook.powerSGD_hook)
    ),
    'own state': own_state,
    'post-local': post_local,
    'unknown': unknown,
}


def train(work_dir, make, iters=(), leave_out=(), hooks=None, **keys):
    register = Register(make)
    runner = make_runner(
        work_dir,
        wrapper(**keys),
        model=dict(type='Struck', iters=iters),
        launcher='pytorch',
        leave_out=leave_out,
        max_iters=9,
        default_hooks=dict(guard_hooks(), checkpoint=None, **(hooks or {})),
        custom_hooks=[register],
        cfg=dict(
            model_wrapper_cfg=dict(
                type='MMDistributedDataParallel', device_ids=None
            )
        ),
    )
    runner.train()
    kept = dict(everything(runner))
    for name, value in HookState(register.state)._values.items():
        if isinstance(value, dict):
            value = torch.cat([torch.zeros(0), *value.values()])
        elif hasattr(value, 'get_state'):
            value = torch.as_tensor(value.get_state()[1].astype('int64'))
        elif isinstance(value, list):
            value = torch.stack(value)
        if isinstance(value, (int, float, torch.Tensor)):
            kept[f'hook {name}'] = torch.as_tensor(value)
    return runner, kept


def differing_keys(kept, oracle):
    """Return the names of values that are not equal bit for bit."""
    return [key for key in oracle if not torch.equal(kept[key], oracle[key])]


def main(work_dir):
    dist.init_process_group('gloo')
    work_dir = Path(work_dir)
    result = {}
    for name, make in MAKERS.items():
        runner, kept = train(work_dir / 'a', make, STRUCK)
        _, oracle = train(work_dir / 'b', make, leave_out=STRUCK)
        (log,) = Path(runner.log_dir).glob('*.log')
        result[name] = [
            differing_keys(kept, oracle),
            runner.optim_wrapper.guard.state.total_skips,
            'is not known: what it remembers' in log.read_text(),
        ]
    # Back to the state of iteration 4, after two rejected updates.
    runner, kept = train(
        work_dir / 'a',
        power(),
        [6, 7],
        hooks=dict(rollback=dict(type='mmnanguard.RollbackHook', interval=4)),
        guard=dict(max_consecutive_skips=2, when_exhausted='rollback'),
    )
    _, oracle = train(work_dir / 'b', power(), leave_out=[5, 6, 7])
    result['rollback'] = differing_keys(kept, oracle)
    result['rollbacks'] = runner.optim_wrapper.guard.state.num_rollbacks
    try:
        train(work_dir / 'c', power(), guard=dict(accumulation='microbatch'))
        result['refused'] = ''
    except GuardConfigError as error:
        result['refused'] = str(error)
    path = work_dir / f'rank_{get_rank()}.json'
    path.write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
