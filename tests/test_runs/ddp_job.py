"""One rank of a DDP run over gloo; what it ends with goes to a file."""

import math
import sys
from pathlib import Path

import torch
from mmengine.hooks import Hook
from torch import distributed as dist
from toys import everything, guard_hooks, make_runner, wrapper

from mmnanguard.core import TrainingHalted


class Spoil(Hook):
    """On one rank only."""

    def __init__(self, rank, iters, site):
        self.is_mine = rank == dist.get_rank()
        self.iters, self.site = iters, site

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if not self.is_mine or runner.iter + 1 not in self.iters:
            return
        wrapper = runner.optim_wrapper
        backward = type(wrapper).backward

        def spoilt(loss):
            if self.site == 'loss':  # the gradients stay finite
                loss = loss + math.nan
            elif self.site == 'grad':
                loss = loss * math.nan
            backward(wrapper, loss)
            if self.site == 'buffer':
                runner.model.module.backbone[1].running_var[0] = math.inf

        wrapper.backward = spoilt

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        vars(runner.optim_wrapper).pop('backward', None)


def main(work_dir, site, rank, iters, limit):
    dist.init_process_group('gloo')
    iters = tuple(map(int, iters.split(',')))
    hooks = [] if site == 'none' else [Spoil(int(rank), iters, site)]
    runner = make_runner(
        work_dir,
        wrapper(
            'NanGuardAmpOptimWrapper',
            optimizer='AdamW',
            lr=0.01,
            dtype='float16',
            loss_scale=dict(init_scale=64, min_scale=16),
            clip_grad=dict(max_norm=0.5),
            guard=dict(max_consecutive_skips=int(limit), proven_after=0),
        ),
        default_hooks=guard_hooks(),
        custom_hooks=hooks,
        leave_out=iters if site == 'none' else (),
        max_iters=8,
        launcher='pytorch',
        experiment_name=f'ddp_{Path(work_dir).name}',
        cfg=dict(
            model_wrapper_cfg=dict(
                type='MMDistributedDataParallel',
                broadcast_buffers=False,
                device_ids=None,
            )
        ),
    )
    halted = ''
    try:
        runner.train()
    except TrainingHalted as error:
        halted = str(error)
    torch.save(
        dict(
            tensors=everything(runner),
            scale=runner.optim_wrapper.loss_scaler.get_scale(),
            state=runner.optim_wrapper.guard.state.to_dict(),
            halted=halted,
        ),
        Path(work_dir) / f'rank_{dist.get_rank()}.pt',
    )
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
