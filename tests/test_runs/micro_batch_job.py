"""One of two ranks that leave micro-batches out and write their results."""

import json
import sys
from datetime import timedelta
from pathlib import Path

import matrix
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmnanguard.core import GuardConfigError
from mmnanguard.optim import NanGuardOptimWrapper

NUM_WINDOWS, LENGTH, LR = 4, 2, 0.1
FAULTS = {
    'input': matrix.Fault('input', 'nan'),
    'loss': matrix.Fault('loss', 'inf'),
    'grad': matrix.Fault('grad', 'nan'),
    'buffer': matrix.Fault('buffer', 'inf'),
}


class Net(matrix.Net):
    """A model with special parameters: one that only rank 0 uses, one that no
    rank uses, and one that DDP ignores.
    """

    def __init__(self):
        super().__init__()
        self.local = nn.Parameter(torch.ones(2))
        self.idle = nn.Parameter(torch.ones(2))
        self.apart = nn.ParameterList([torch.ones(2)])
        # DDP respects no name without a dot.
        self._ddp_params_and_buffers_to_ignore = ['apart.0', 'local']

    def forward(self, images, strike=None):
        logits = super().forward(images, strike) * self.apart[0]
        return logits + self.local if dist.get_rank() == 0 else logits


def batches():
    generator = torch.Generator().manual_seed(1 + dist.get_rank())
    for window in range(NUM_WINDOWS):
        for number in range(LENGTH):
            images = torch.randn(4, 1, 5, 5, generator=generator)
            yield window, number, images


def build(type_, **keys):
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), LR, 0.9, weight_decay=0.1)
    return net, type_(optimizer, accumulative_counts=LENGTH, **keys)


def train(type_, faults, site, broadcasts, **keys):
    net, wrapper = build(type_, **keys)
    model = MMDistributedDataParallel(
        net, broadcast_buffers=broadcasts, find_unused_parameters=True
    )
    if faults:
        wrapper.guard.attach(object())
    for window, number, images in batches():
        if site == 'freeze':  # each second time
            net.conv.weight.requires_grad_(number == 0)
        is_struck = [dist.get_rank(), window, number] in faults
        fault = FAULTS[site] if is_struck else None
        matrix.train_step(model, wrapper, images, fault)
    return net, wrapper


def oracle(faults, broadcasts):
    """Train without the struck micro-batches; average the rest by hand."""
    net, wrapper = build(OptimWrapper)
    for window, number, images in batches():
        if broadcasts and number == 0:
            for buffer in net.buffers():
                dist.broadcast(buffer, 0)
        struck = [fault for fault in faults if fault[1] == window]
        if [dist.get_rank(), window, number] not in struck:
            with wrapper.optim_context(net):
                target = torch.tensor([0, 1, 0, 1])
                loss = nn.functional.cross_entropy(net(images), target)
            (loss / LENGTH).backward()
        total = LENGTH * dist.get_world_size()
        if number < LENGTH - 1 or len(struck) == total:
            continue
        for name, param in net.named_parameters():
            if name != 'apart.0':
                param.grad = add_up(param, LENGTH / (total - len(struck)))
            elif param.grad is not None:
                param.grad *= total / (total - len(struck))
        wrapper.optimizer.step()
        wrapper.optimizer.zero_grad()
    return net, wrapper


def add_up(param, factor):
    """Add the gradients of all ranks; None where no rank has a gradient."""
    has_grad = torch.tensor(float(param.grad is not None))
    grad = torch.zeros_like(param) if param.grad is None else param.grad
    dist.all_reduce(grad)
    dist.all_reduce(has_grad)
    return grad * factor if has_grad else None


def see(name, faults, site, broadcasts):
    keys = dict(guard=dict(accumulation='microbatch'))
    net, wrapper = train(
        NanGuardOptimWrapper, faults, site, broadcasts, **keys
    )
    left = matrix.everything(net, wrapper)
    other = (
        oracle(faults, broadcasts)
        if faults
        else train(OptimWrapper, (), site, broadcasts)
    )
    right = matrix.everything(*other)
    events = wrapper.guard.take_events()
    shared = ('conv.', 'bn.weight', 'bn.bias', 'head.', 'local', 'idle')
    names = [name for name in left if name.startswith(shared)]
    mine = torch.cat([left[k].flatten() for k in names])
    theirs = mine.clone()
    dist.broadcast(theirs, 0)
    return dict(
        differing=matrix.differing(left, right),
        distance=max(float((left[k] - right[k]).abs().max()) for k in left),
        is_shared=torch.equal(mine, theirs),
        has_idle_state=net.idle in wrapper.optimizer.state,
        told=[
            [e.action.value, e.cause.value, list(e.ranks), e.micro_batches]
            for e in events
        ],
        names=[[bad.name for bad in e.params[:1]] for e in events],
        state=wrapper.guard.state.to_dict(),
    )


def refusals():
    keys = dict(guard=dict(accumulation='microbatch'))
    messages = {}
    for name, wrap in (
        ('bare', lambda net: net),
        (
            'fsdp',
            lambda net: FullyShardedDataParallel(
                net, device_id=torch.device('cpu')
            ),
        ),
    ):
        torch.manual_seed(0)
        model = wrap(matrix.Net())
        optimizer = torch.optim.SGD(model.parameters(), LR)
        wrapper = NanGuardOptimWrapper(optimizer, **keys)
        try:
            matrix.train_step(model, wrapper, torch.randn(4, 1, 5, 5), None)
        except GuardConfigError as error:
            messages[name] = str(error)
    model = MMDistributedDataParallel(nn.Embedding(4, 2, sparse=True))
    optimizer = torch.optim.SGD(model.parameters(), LR)
    wrapper = NanGuardOptimWrapper(optimizer, **keys)
    try:
        with wrapper.optim_context(model):
            loss = model(torch.tensor([1])).sum()
        wrapper.update_params(loss)
    except GuardConfigError as error:
        messages['sparse'] = str(error)
    return messages


def main(work_dir):
    # A hang ends with a traceback of each rank.
    dist.init_process_group('gloo', timeout=timedelta(seconds=60))
    scenes = json.loads(Path(work_dir, 'scenes.json').read_text())
    seen = {name: see(name, *scene) for name, scene in scenes.items()}
    seen['refusals'] = refusals()
    path = Path(work_dir) / f'rank_{dist.get_rank()}.json'
    path.write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
