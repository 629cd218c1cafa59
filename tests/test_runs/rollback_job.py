"""One of two ranks that roll back together and write their results."""

import json
import math
import sys
from pathlib import Path

import torch
from mmengine.dist import get_rank, is_main_process
from mmengine.hooks import Hook
from strategy_job import here, make
from torch import distributed as dist
from toys import everything, read_rows


class Remember(Hook):
    """Remember this rank's part of all tensors after each iteration."""

    priority = 'LOWEST'

    def __init__(self):
        self.states = {}

    def after_train_iter(self, runner, **kwargs):
        self.states[runner.iter + 1] = {
            name: here(tensor).detach().clone()
            for name, tensor in everything(runner).items()
        }


class Spoil(Hook):
    """Spoil the weights of one rank, outside of any update."""

    def after_train_iter(self, runner, **kwargs):
        if runner.iter + 1 == 9 and get_rank() == 1:
            for param in runner.model.parameters():
                if param.numel():
                    param.data.view(-1)[0] = math.nan


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


def main(work_dir, way):
    dist.init_process_group('gloo')
    rollback = dict(type='mmnanguard.RollbackHook', interval=4, num_kept=2)
    runner = make(
        Path(work_dir) / 'run',
        way,
        12,
        hooks=dict(rollback=rollback),
        faults=(6, 7),
        # The gradients are bad as well, so that the skips count.
        site='activation',
        guard=dict(max_consecutive_skips=2, when_exhausted='rollback'),
    )
    remember = Remember()
    runner.register_hook(remember)
    runner.register_hook(Spoil())
    runner.train()
    states = remember.states
    result = dict(
        back=[same(states[7], states[4]), same(states[9], states[8])],
        moved=not same(states[10], states[9]),
        finite=all(t.isfinite().all().item() for t in states[12].values()),
        rollbacks=runner.optim_wrapper.guard.state.num_rollbacks,
        rows=read_rows(runner, 'rollback') if is_main_process() else [],
    )
    path = Path(work_dir) / f'rank_{get_rank()}.json'
    path.write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
