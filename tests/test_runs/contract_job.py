"""One rank of two that runs and resumes every registered hook and wrapper.

Writes a digest of the parameters at the end of both runs, by name.
"""

import hashlib
import json
import sys
from datetime import timedelta
from pathlib import Path

from contracts import FAULT, HOOK_NAMES, WRAPPER_NAMES, train
from torch import distributed as dist
from toys import BATCH_SIZE, loader, make_data

DDP = dict(
    launcher='pytorch',
    # Enough for both ranks: MMEngine pauses before it begins anew.
    train_dataloader=loader(make_data(2 * 4 * BATCH_SIZE)),
    cfg=dict(
        model_wrapper_cfg=dict(
            type='MMDistributedDataParallel', device_ids=None
        )
    ),
)


def run_and_resume(folder, **keys):
    faults = [FAULT]
    first = train(folder / 'first', faults=faults, **keys, **DDP)
    dist.barrier()  # rank 0 has written its checkpoint
    resumed = train(
        folder / 'resumed',
        faults=faults,
        resume_from=folder / 'first' / 'iter_2.pth',
        **keys,
        **DDP,
    )
    return [digest(first), digest(resumed)]


def digest(runner):
    """Hash the parameters; the buffers differ, as each rank has statistics of
    its own images.
    """
    params = runner.model.parameters()
    content = b''.join(param.detach().numpy().tobytes() for param in params)
    return hashlib.sha256(content).hexdigest()


def main(path):
    # A hang ends with a traceback of each rank.
    dist.init_process_group('gloo', timeout=timedelta(seconds=60))
    path = Path(path)
    digests = {}
    for name in HOOK_NAMES:
        digests[name] = run_and_resume(path / name, hook=name)
    for name in WRAPPER_NAMES:
        digests[name] = run_and_resume(path / name, wrapper_name=name)
    file = path / f'rank_{dist.get_rank()}.json'
    file.write_text(json.dumps(digests))
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
