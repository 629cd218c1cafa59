"""One of two ranks with some bad inputs, under DDP over gloo.

The script runs one situation after another; rank 0 writes the results.
"""

import json
import math
import sys
from datetime import timedelta
from pathlib import Path

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from torch import distributed as dist
from toys import (
    BATCH_SIZE,
    guard_hooks,
    loader,
    make_data,
    make_runner,
    read_rows,
)
from toys import wrapper as make_wrapper

from mmnanguard.core import TrainingHalted

MAX_ITERS = 6


@MODELS.register_module()
class Stack(BaseDataPreprocessor):
    def forward(self, data, training=False):
        data = super().forward(data, training)
        return dict(data, inputs=torch.stack(list(data['inputs'])))


def run(
    work_dir,
    bad=(),
    value=math.nan,
    hook=None,
    leave_out=(),
    accumulation=1,
    named=True,
):
    world_size = dist.get_world_size()
    data = make_data(MAX_ITERS * BATCH_SIZE * world_size)
    for index in bad:
        data[index]['inputs'][0, 0, 0] = value
    for item in data:
        if not named:
            item['data_samples'].set_metainfo(dict(img_path=None))
    hooks = guard_hooks()
    if hook is not None:
        hooks['input_guard'] = dict(type='mmnanguard.InputGuardHook', **hook)
    runner = make_runner(
        work_dir,
        make_wrapper(
            optimizer='AdamW', lr=0.01, accumulative_counts=accumulation
        ),
        model=dict(type='ToyNet', data_preprocessor=dict(type='Stack')),
        train_dataloader=loader(data),
        default_hooks=hooks,
        leave_out=leave_out,
        max_iters=MAX_ITERS,
        launcher='pytorch',
        experiment_name=work_dir.name,
        cfg=dict(
            model_wrapper_cfg=dict(
                type='MMDistributedDataParallel',
                device_ids=None,
                broadcast_buffers=False,
            )
        ),
    )
    halted = ''
    try:
        runner.train()
    except TrainingHalted as error:
        halted = str(error)
    dist.barrier()
    tensors = dict(runner.model.module.state_dict())
    for index, state in enumerate(
        runner.optim_wrapper.optimizer.state.values()
    ):
        for key, tensor in state.items():
            tensors[f'{index} {key}'] = torch.as_tensor(tensor)
    ended = dict(
        halted=halted,
        tensors={name: tensor.tolist() for name, tensor in tensors.items()},
    )
    everyone = [None] * world_size
    dist.all_gather_object(everyone, ended)
    is_main = dist.get_rank() == 0
    return dict(
        updates=read_rows(runner) if is_main else [],
        inputs=read_rows(runner, 'input') if is_main else [],
        log=[path.read_text() for path in Path(runner.log_dir).glob('*.log')],
        tensors=[result['tensors'] for result in everyone],
        halted=[result['halted'] for result in everyone],
    )


def main(path):
    # A hang ends with a traceback of each rank.
    dist.init_process_group('gloo', timeout=timedelta(seconds=60))
    path = Path(path)
    situations = json.loads((path / 'situations.json').read_text())
    results = {}
    for name, situation in situations.items():
        try:
            results[name] = run(path / name, **situation)
        except RuntimeError as error:
            raise RuntimeError(f'in the situation {name!r}') from error
    if dist.get_rank() == 0:
        (path / 'results.json').write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
