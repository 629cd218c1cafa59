"""One of two ranks that train with a monitor that acts."""

import json
import sys
from datetime import timedelta
from pathlib import Path

from stability_job import train
from torch import distributed as dist

HOOKS = dict(
    fp32=dict(type='mmnanguard.Fp32ModulesHook'),
    stability=dict(
        type='mmnanguard.StabilityMonitorHook',
        interval=1,
        update_ratio=1e-9,
        act=['fp32', 'lr'],
    ),
)


def main(work_dir):
    dist.init_process_group('gloo', timeout=timedelta(seconds=300))
    seen = {}
    for way in ('ddp', 'fsdp2'):
        _, rows = train(Path(work_dir, way), way, 8, 'remedy', **HOOKS)
        seen[way] = [
            {key: row[key] for key in ('remedy', 'module', 'value')}
            for row in rows
        ]
    path = Path(work_dir) / f'rank_{dist.get_rank()}.json'
    path.write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
