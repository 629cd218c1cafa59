"""One of two ranks; the state of one rank goes bad without the guard."""

import json
import math
import sys
from pathlib import Path

from mmengine.hooks import Hook
from strategy_job import make, mend_mmengine
from torch import distributed as dist

from mmnanguard.core import TrainingHalted
from mmnanguard.numerics.base.shards import local


class Spoil(Hook):
    """Spoil a tensor at the end of the last iteration, before it is saved."""

    def __init__(self, where):
        self.where = where

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        if runner.iter + 1 < 8 or dist.get_rank() == 0:
            return
        *_, param = (p for p in runner.model.parameters() if p.numel())
        if self.where == 'optimizer':
            param = runner.optim_wrapper.optimizer.state[param]['exp_avg']
        local(param).data.view(-1)[-1] = math.nan


class Save(Hook):
    """Save on one rank only; the audit must not wait for other ranks."""

    priority = 'VERY_LOW'

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        if dist.get_rank() == 0 and runner.iter + 1 == 6:
            runner.save_checkpoint(runner.work_dir, 'own.pth')


def main(work_dir, way, where):
    dist.init_process_group('gloo')
    mend_mmengine()
    runner = make(Path(work_dir), way, 8)
    runner.register_hook(Spoil(where))
    if way == 'ddp':
        runner.register_hook(Save())
    seen = {}
    try:
        runner.train()
    except TrainingHalted as halted:
        event = halted.event
        seen = dict(story=str(halted), iter=event.iter, ranks=event.ranks)
    path = Path(work_dir) / f'rank_{dist.get_rank()}.json'
    path.write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
