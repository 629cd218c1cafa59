"""One of two ranks whose optimizer spoils a weight on a single rank."""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
from fsdp_job import WAYS, build
from matrix import differing, everything
from mmengine.model import MMDistributedDataParallel
from torch import distributed as dist

from mmnanguard.numerics.base.shards import local
from mmnanguard.optim import NanGuardOptimWrapper

STRUCK = (2, 5)
NUM_WINDOWS = 6


class Dividing(torch.optim.SGD):
    """SGD whose step makes NaN in the struck calls, on one rank."""

    calls = 0
    is_struck = False

    def step(self, closure=None):
        super().step()
        Dividing.calls += 1
        if self.is_struck and Dividing.calls in STRUCK:
            with torch.no_grad():
                for param in self.param_groups[0]['params']:
                    local(param).fill_(float('nan'))


def train(way, struck=None, leave_out=()):
    Dividing.calls = 0
    Dividing.is_struck = struck == dist.get_rank()
    if way == 'ddp':
        model = MMDistributedDataParallel(build(), broadcast_buffers=False)
    else:
        model = WAYS[way](build())
    wrapper = NanGuardOptimWrapper(
        Dividing(model.parameters(), lr=0.1, momentum=0.9),
        guard=dict(check_step='always'),
    )
    wrapper.guard.attach(object())
    generator = torch.Generator().manual_seed(dist.get_rank())
    for window in range(1, NUM_WINDOWS + 1):
        images = torch.randn(4, 3, generator=generator)
        if window not in leave_out:
            with wrapper.optim_context(model):
                loss = model(images).square().mean()
            wrapper.update_params(loss)
    tensors = {}
    for index, param in enumerate(model.parameters()):
        tensors[f'param {index}'] = local(param).detach().clone()
    for name, buffer in model.named_buffers():
        tensors[name] = buffer.clone()
    if way == 'ddp':
        tensors.update(everything(model, wrapper))
    events = []
    for event in wrapper.guard.take_events():
        events.append([event.iter, event.cause.value, list(event.ranks)])
    return tensors, events


def main(work_dir):
    dist.init_process_group('gloo', timeout=timedelta(minutes=5))
    cells = {}
    for way in sys.argv[2:]:
        for struck in range(dist.get_world_size()):
            tensors, events = train(way, struck)
            expected, _ = train(way, leave_out=STRUCK)
            cells[f'{way}, rank {struck}'] = dict(
                events=events, differing=differing(tensors, expected)
            )
    path = Path(work_dir, f'rank_{dist.get_rank()}.json')
    path.write_text(json.dumps(cells))


if __name__ == '__main__':
    main(sys.argv[1])
