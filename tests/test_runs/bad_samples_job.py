"""One of two ranks that audit the digits, and then train on them over gloo."""

import json
import sys
from datetime import timedelta
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner
from planted_digits import VALIDATE, PlantedDigits
from torch import distributed as dist

from tools.audit_dataset import main

ROOT = Path(__file__).parents[2]


def train(work_dir):
    """Train with two loader processes per rank; the samples that they drop are
    reported.
    """
    cfg = Config.fromfile(ROOT / 'configs/digits/guarded_fp32.py')
    pipeline = [VALIDATE, dict(type='PackDigits')]
    cfg.merge_from_dict(
        dict(
            work_dir=str(work_dir),
            launcher='pytorch',
            model_wrapper_cfg=dict(
                type='MMDistributedDataParallel', device_ids=None
            ),
            train_cfg=dict(max_epochs=1),
            train_dataloader=dict(
                num_workers=2,
                dataset=dict(type=PlantedDigits.__name__, pipeline=pipeline),
            ),
            default_hooks=dict(
                bad_samples=dict(type='mmnanguard.BadSamplesHook', interval=10)
            ),
        )
    )
    runner = Runner.from_cfg(cfg)
    runner.train()
    scalar = runner.message_hub.get_scalar('train/guard/bad_samples')
    validate = runner.train_dataloader.dataset.pipeline.transforms[0]
    return dict(
        told=int(scalar.current()),
        own=sorted(validate.record.read()),
        record=validate.record.path,
        rank=runner.rank,
    )


if __name__ == '__main__':
    config, shards, work_dir, *args = sys.argv[1:]
    # The rank that ends last has found the bad samples.
    assert main([config, *args, '--out', shards]) in (0, 1)
    dist.init_process_group('gloo', timeout=timedelta(seconds=60))
    result = train(work_dir)
    path = Path(work_dir, f'rank_{result["rank"]}.json')
    path.write_text(json.dumps(result))
