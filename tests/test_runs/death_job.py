"""One rank of a DDP run in which a rank is killed at iteration 4."""

import os
import signal
import sys
from pathlib import Path

import torch
from mmengine.hooks import Hook
from torch import distributed as dist
from toys import everything, guard_hooks, make_runner, wrapper

from mmnanguard.core import NanGuardError

FATAL = 4


class Death(Hook):
    """Keep the state of every rank before the fatal iteration."""

    def __init__(self, victim, stage):
        self.is_victim = victim == dist.get_rank()
        self.stage = stage
        self.kept = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 != FATAL:
            return
        self.kept = {k: v.clone() for k, v in everything(runner).items()}
        if not self.is_victim:
            return
        if self.stage == 'forward':
            # The backbone is done, the head is not.
            net = runner.model.module
            net.backbone.register_forward_hook(die)
        elif self.stage == 'check':
            # The other rank has made its step, and asks how this one went.
            runner.optim_wrapper.optimizer.register_step_post_hook(die)
        else:
            runner.optim_wrapper.step = die


def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)


def main(work_dir, stage, victim):
    dist.init_process_group('gloo')
    death = Death(int(victim), stage)
    runner = make_runner(
        work_dir,
        wrapper(optimizer='AdamW', lr=0.01, guard=dict(check_step='always')),
        default_hooks=guard_hooks(),
        custom_hooks=[death],
        launcher='pytorch',
        experiment_name='death',
        cfg=dict(
            model_wrapper_cfg=dict(
                type='MMDistributedDataParallel',
                broadcast_buffers=False,
                device_ids=None,
            )
        ),
    )
    try:
        runner.train()
    except NanGuardError:
        left = everything(runner)
        torch.save((death.kept, left), Path(work_dir) / 'survivor.pt')
        raise


if __name__ == '__main__':
    main(*sys.argv[1:])
