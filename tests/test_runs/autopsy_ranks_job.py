"""One of two ranks, with a model that communicates in forward.

The script runs one situation after another; rank 0 writes the results.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import distributed as dist
from torch import nn
from toys import (
    BATCH_SIZE,
    guard_hooks,
    loader,
    make_data,
    make_runner,
    read_rows,
)
from toys import wrapper as make_wrapper

MAX_ITERS = 5


class Sum(torch.autograd.Function):
    """A sum over ranks, as SyncBN and mmdet's reduce_mean have it."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


class SyncNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        sums = torch.cat([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))])
        mean, square = (Sum.apply(sums) / dist.get_world_size()).chunk(2)
        scale = self.weight * (square - mean.square() + 1e-5).rsqrt()
        return (x - mean[:, None, None]) * scale[:, None, None]


@MODELS.register_module()
class SyncedNet(BaseModel):
    """A model that is ill where an image is above 100."""

    def __init__(self, ill):
        super().__init__()
        self.ill = ill
        self.conv = nn.Conv2d(3, 4, 3)
        nn.init.uniform_(self.conv.weight, 0.1, 0.3)
        self.norm = SyncNorm()
        self.head = nn.Linear(4, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        images = torch.stack(list(inputs))
        is_ill = (images.flatten(1).amax(1) > 100)[:, None, None, None]
        images = images.clamp(max=10.0)
        if self.ill == 'forward':
            images = images * (1 + 3e37 * is_ill)
        features = self.norm(self.conv(images)).relu()
        if self.ill == 'backward':
            features = features + ((features + 1) * ~is_ill).sqrt()
        logits = self.head(features.mean((2, 3)))
        return dict(loss=logits.square().mean())


def run(work_dir, ill, samples, max_autopsies):
    world_size = dist.get_world_size()
    data = make_data(MAX_ITERS * BATCH_SIZE * world_size)
    for sample in samples:
        data[sample]['inputs'] += 1e3
    runner = make_runner(
        work_dir,
        make_wrapper(lr=0.01),
        model=dict(type='SyncedNet', ill=ill),
        train_dataloader=loader(data),
        default_hooks={
            **guard_hooks(),
            'autopsy': dict(
                type='mmnanguard.AutopsyHook', max_autopsies=max_autopsies
            ),
            'dump': dict(type='mmnanguard.BatchDumpHook', max_dumps=1),
        },
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
    runner.train()
    dist.barrier()
    weights = {
        name: tensor.tolist()
        for name, tensor in runner.model.module.state_dict().items()
    }
    everyone = [None] * world_size
    dist.all_gather_object(everyone, weights)
    return dict(
        updates=read_rows(runner) if dist.get_rank() == 0 else [],
        autopsies=read_rows(runner, 'autopsy') if dist.get_rank() == 0 else [],
        dumps=read_rows(runner, 'dump') if dist.get_rank() == 0 else [],
        weights=everyone,
    )


def main(path):
    # A hang ends with a traceback of each rank.
    dist.init_process_group('gloo', timeout=timedelta(seconds=60))
    path = Path(path)
    situations = json.loads((path / 'situations.json').read_text())
    results = {
        name: run(path / name, **situation)
        for name, situation in situations.items()
    }
    if dist.get_rank() == 0:
        (path / 'results.json').write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
