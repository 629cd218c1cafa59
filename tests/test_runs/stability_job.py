"""One of two ranks that train with and without the monitor."""

import json
import sys
from datetime import timedelta
from pathlib import Path

from campaign_ranks import everything, same, share
from mmengine.hooks import Hook
from torch import distributed as dist
from toys import (
    BATCH_SIZE,
    guard_hooks,
    loader,
    low_precision,
    make_data,
    make_runner,
    read_rows,
    wrapper,
)

from mmnanguard.hooks import StabilityMonitorHook
from mmnanguard.numerics.stability import output_probe

MONITOR = dict(
    stability=dict(
        type='mmnanguard.StabilityMonitorHook', interval=1, update_ratio=None
    )
)


class Loud(Hook):
    """Make the images of rank 1 large, so that its outputs are."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if dist.get_rank() == 1:
            inputs = data_batch['inputs']
            data_batch['inputs'] = [5000 * image for image in inputs]


class KeepRows(Hook):
    """Keep the rows of a kind of this rank, since rank 0 alone writes them."""

    def __init__(self, kind):
        self.kind, self.rows = kind, []

    def after_guard_row(self, runner, row):
        if row['kind'] == self.kind:
            self.rows.append(row)


def train(work_dir, way, num_iters=6, kind='alert', **hooks):
    """Train with hooks; return the runner, and the rows of a kind."""
    kept = KeepRows(kind)
    runner = make_runner(
        work_dir,
        wrapper(
            'NanGuardAmpOptimWrapper',
            lr=1e-4,
            **low_precision(dict(init_scale=1.0, min_scale=1.0)),
        ),
        model=share(way),
        default_hooks=dict(
            guard_hooks(), checkpoint=None, logger=None, **hooks
        ),
        custom_hooks=[Loud(), kept],
        train_dataloader=loader(
            make_data(num_iters * BATCH_SIZE * dist.get_world_size())
        ),
        max_iters=num_iters,
        log_level='ERROR',
    )
    # MMEngine's Runner would broadcast shards, which are each rank's own.
    runner._init_model_weights = lambda: None
    runner.train()
    return runner, kept.rows


def monitor_of(runner):
    (hook,) = [h for h in runner.hooks if isinstance(h, StabilityMonitorHook)]
    return hook


def fail(outputs, known):
    raise ValueError('on one rank')


def main(work_dir):
    dist.init_process_group('gloo', timeout=timedelta(seconds=300))
    seen = {}
    for way in ('ddp', 'fsdp1', 'fsdp2'):
        states, alerts = [], []
        for name, hooks in (('plain', {}), ('monitored', MONITOR)):
            runner, alerts = train(Path(work_dir, way, name), way, **hooks)
            states.append(everything(runner))
        before, after = states
        hook = monitor_of(runner)
        seen[way] = dict(
            alerts=alerts,
            is_partial=hook._is_partial,
            is_equal=all(same(before[name], after[name]) for name in before),
        )
        if dist.get_rank() == 0:
            assert len(read_rows(runner, 'alert')) == len(alerts)
    if dist.get_rank() == 1:
        output_probe.tensors_in = fail
    runner, _ = train(Path(work_dir, 'failing'), 'ddp', **MONITOR)
    seen['failing'] = monitor_of(runner)._monitor.num_samples
    path = Path(work_dir) / f'rank_{dist.get_rank()}.json'
    path.write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
