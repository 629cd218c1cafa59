"""One of two ranks that train with a monitor that acts."""

import json
import sys
from datetime import timedelta
from pathlib import Path

from campaign_ranks import share
from mmengine.hooks import Hook
from stability_job import Loud
from torch import distributed as dist
from toys import (
    BATCH_SIZE,
    guard_hooks,
    loader,
    low_precision,
    make_data,
    make_runner,
    wrapper,
)

NUM_ITERS = 8


class KeepRemedies(Hook):
    """Keep the remedies of this rank, since rank 0 alone writes them."""

    def __init__(self):
        self.rows = []

    def after_guard_row(self, runner, row):
        if row['kind'] == 'remedy':
            self.rows.append(
                {k: row[k] for k in ('remedy', 'module', 'value')}
            )


def train(work_dir, way):
    hooks = dict(
        guard_hooks(),
        checkpoint=None,
        logger=None,
        fp32=dict(type='mmnanguard.Fp32ModulesHook'),
        stability=dict(
            type='mmnanguard.StabilityMonitorHook',
            interval=1,
            update_ratio=1e-9,
            act=['fp32', 'lr'],
        ),
    )
    kept = KeepRemedies()
    runner = make_runner(
        work_dir,
        wrapper(
            'NanGuardAmpOptimWrapper',
            lr=1e-4,
            **low_precision(dict(init_scale=1.0, min_scale=1.0)),
        ),
        model=share(way),
        default_hooks=hooks,
        custom_hooks=[Loud(), kept],
        train_dataloader=loader(
            make_data(NUM_ITERS * BATCH_SIZE * dist.get_world_size())
        ),
        max_iters=NUM_ITERS,
        log_level='ERROR',
    )
    # MMEngine's Runner would broadcast shards, which are each rank's own.
    runner._init_model_weights = lambda: None
    runner.train()
    return kept.rows


def main(work_dir):
    dist.init_process_group('gloo', timeout=timedelta(seconds=300))
    seen = {}
    for way in ('ddp', 'fsdp2'):
        seen[way] = train(Path(work_dir, way), way)
    path = Path(work_dir) / f'rank_{dist.get_rank()}.json'
    path.write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
