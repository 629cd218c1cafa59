"""One of two ranks, which resumes a run from a checkpoint that is bad.

Usage: resume_job.py WORK_DIR WHERE
"""

import json
import math
import sys
from pathlib import Path

import torch
from torch import distributed as dist
from toys import guard_hooks, make_runner, wrapper


def train(work_dir, kind, max_iters, **keys):
    hooks = dict(
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2)
    )
    if kind != 'OptimWrapper':
        hooks.update(guard_hooks())
    runner = make_runner(
        work_dir,
        wrapper(kind, optimizer='AdamW', lr=0.01),
        default_hooks=hooks,
        max_iters=max_iters,
        launcher='pytorch',
        cfg=dict(
            model_wrapper_cfg=dict(
                type='MMDistributedDataParallel', device_ids=None
            )
        ),
        **keys,
    )
    runner.train()
    return runner


def spoil(path, where):
    if where == 'file':
        path.write_bytes(path.read_bytes()[:-500])
        return
    saved = torch.load(path, weights_only=False)
    tensor = saved['state_dict']['backbone.1.running_var']
    if where == 'optimizer':
        tensor = saved['optimizer']['state'][1]['exp_avg_sq']
    tensor[0] = math.nan
    torch.save(saved, path)


def main(work_dir, where):
    dist.init_process_group('gloo')
    work_dir = Path(work_dir)
    train(work_dir, 'OptimWrapper', 4)
    if dist.get_rank() == 0:
        spoil(work_dir / 'iter_4.pth', where)
    dist.barrier()
    runner = train(work_dir, 'NanGuardOptimWrapper', 6, resume=True)
    seen = dict(
        loaded=Path(runner._load_from).name,
        num_steps=runner.optim_wrapper.guard.state.num_steps,
    )
    path = work_dir / f'rank_{dist.get_rank()}.json'
    path.write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
