"""One of several ranks that train sharded models and write their results.

Each cell is trained with a fault on one rank and again with the struck windows
left out.
"""

import itertools
import json
import math
import sys
from datetime import timedelta
from pathlib import Path

import torch
from matrix import CLIPS, OPTIMIZERS
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecision,
    ShardingStrategy,
)
from toys import total_norm

from mmnanguard.numerics.base.shards import local
from mmnanguard.optim import NanGuardAmpOptimWrapper, NanGuardOptimWrapper

try:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    HAS_FSDP2 = True
except ImportError:  # before PyTorch 2.6
    HAS_FSDP2 = False

STRUCK = (2, 5)
NUM_WINDOWS = 6
SCALE = 64.0
CLIPS = {**CLIPS, 'inf': dict(max_norm=0.05, norm_type='inf')}


def build(precision='fp32'):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 1)
    )
    return model.bfloat16() if precision == 'bf16 weights' else model


def flat(model, **keys):
    return FullyShardedDataParallel(
        model, device_id=torch.device('cpu'), **keys
    )


def flat_in_parts(model, **keys):
    """Shard the last layer as a unit and the first one with the root."""
    model[3] = flat(model[3], **keys)
    return flat(model, **keys)


def hybrid(model, **keys):
    """Shard the model over pairs of ranks; the pairs are replicas."""
    mesh = init_device_mesh('cpu', (2, dist.get_world_size() // 2))
    return flat(
        model,
        device_mesh=mesh,
        sharding_strategy=ShardingStrategy.HYBRID_SHARD,
        **keys,
    )


def dtensors(model, dims=1, **keys):
    world_size = dist.get_world_size()
    shape = (world_size,) if dims == 1 else (2, world_size // 2)
    names = ('replicas', 'shards')[-dims:]
    mesh = init_device_mesh('cpu', shape, mesh_dim_names=names)
    fully_shard(model[0], mesh=mesh, **keys)
    return fully_shard(model, mesh=mesh, **keys)


WAYS = {
    'flat': flat,
    'flat, original parameters': lambda m, **keys: flat(
        m, use_orig_params=True, **keys
    ),
    'flat, in parts': flat_in_parts,
    'flat, not sharded': lambda m, **keys: flat(
        m, sharding_strategy=ShardingStrategy.NO_SHARD, **keys
    ),
}
if HAS_FSDP2:
    WAYS.update(
        {
            'dtensors': dtensors,
            'hybrid': hybrid,
            'hybrid dtensors': lambda m, **keys: dtensors(m, 2, **keys),
        }
    )
SITES = ('loss', 'grad', 'activation', 'buffer')
BFLOAT16 = torch.bfloat16


def policy(way):
    """Return the arguments for weights in float32 that compute in bfloat16."""
    if 'dtensors' in way:
        return dict(mp_policy=MixedPrecisionPolicy(param_dtype=BFLOAT16))
    return dict(
        mixed_precision=MixedPrecision(
            param_dtype=BFLOAT16, buffer_dtype=BFLOAT16
        )
    )


def shard(way, precision):
    model, keys = build(precision), {}
    if precision == 'bf16 policy':
        keys = policy(way)
        # fully_shard leaves buffers alone, and batch norm takes one type.
        for buffer in model.buffers():
            if buffer.is_floating_point() and 'dtensors' in way:
                buffer.data = buffer.bfloat16()
    return WAYS[way](model, **keys)


def make_wrapper(model, precision, optimizer, clip, accumulation=1):
    keys = dict(
        optimizer=OPTIMIZERS[optimizer](model.parameters()),
        clip_grad=CLIPS[clip] and dict(CLIPS[clip]),
        accumulative_counts=accumulation,
        guard=dict(proven_after=0),
    )
    if precision != 'fp16':
        return NanGuardOptimWrapper(**keys)
    keys['loss_scale'] = dict(init_scale=SCALE, min_scale=SCALE)
    return NanGuardAmpOptimWrapper(dtype='float16', use_fsdp=True, **keys)


def train(way, site=None, struck=0, leave_out=(), accumulation=1, **keys):
    model = shard(way, keys['precision'])
    wrapper = make_wrapper(model, accumulation=accumulation, **keys)
    events = []
    wrapper.guard.attach(events)
    generator = torch.Generator().manual_seed(dist.get_rank())
    norms = []
    for window in range(1, NUM_WINDOWS + 1):
        for part in range(accumulation):
            images = torch.randn(4, 3, generator=generator)
            if keys['precision'] == 'bf16 weights':
                images = images.bfloat16()
            if window in leave_out:
                continue
            # There is no gradient here before the window's reduction.
            is_time = part == (accumulation - 1 if site == 'grad' else 0)
            is_mine = struck == dist.get_rank() and is_time
            strike = site if is_mine and window in STRUCK else None
            step(model, wrapper, images, strike, part == accumulation - 1)
        norms.append(
            wrapper.message_hub.get_scalar('train/grad_norm').current()
        )
    events += wrapper.guard.take_events()
    return model, wrapper, events, norms


def step(model, wrapper, images, strike, is_last):
    if hasattr(model, 'set_requires_gradient_sync'):
        model.set_requires_gradient_sync(is_last)
    handle = None
    if strike == 'activation':
        handle = first_layer(model).register_forward_hook(
            lambda module, inputs, output: output + math.nan
        )
    with wrapper.optim_context(model):
        loss = model(images).float().square().mean()
    if handle:
        handle.remove()
    if strike == 'loss':
        loss = loss + math.nan  # the gradients stay finite
    wrapper.backward(wrapper.scale_loss(loss))
    with torch.no_grad():
        if strike == 'grad':
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            grad = next(g for g in map(local, grads[::-1]) if g.numel())
            grad.view(-1)[-1] = math.inf
        elif strike == 'buffer':
            next(model.buffers()).view(-1)[0] = math.nan
    if wrapper.should_update():
        wrapper.step()
        wrapper.zero_grad()


def first_layer(model):
    return next(m for m in model.modules() if isinstance(m, nn.Linear))


def everything(model, wrapper):
    """Return this rank's part of the model and the optimizer state."""
    tensors = {
        name: local(tensor)
        for name, tensor in itertools.chain(
            model.named_parameters(), model.named_buffers()
        )
    }
    for index, state in wrapper.optimizer.state_dict()['state'].items():
        for key, value in state.items():
            tensors[f'{index} {key}'] = local(torch.as_tensor(value))
    return {name: t.detach().clone() for name, t in tensors.items()}


def see(way, site, struck, **keys):
    model, wrapper, events, norms = train(way, site, struck, **keys)
    oracle = everything(*train(way, leave_out=STRUCK, **keys)[:2])
    left = everything(model, wrapper)
    bad_params = itertools.chain.from_iterable(e.params for e in events)
    return dict(
        told=[
            [event.iter, event.cause.value, list(event.ranks)]
            for event in events
        ],
        names=sorted({bad.name for bad in bad_params}),
        state=wrapper.guard.state.to_dict(),
        scale=wrapper.guard.scaler.get_scale(),
        norms=norms,
        differing=[
            name
            for name, tensor in left.items()
            if not torch.equal(tensor, oracle[name])
        ],
    )


def whole_norms(**keys):
    """Return the norms of the same training without sharding or guard.

    The batches of all ranks are one batch here.
    """
    model = build()
    accumulation = keys.pop('accumulation', 1)
    wrapper = make_wrapper(model, **keys)
    generators = [
        torch.Generator().manual_seed(rank)
        for rank in range(dist.get_world_size())
    ]
    norms = []
    clip = CLIPS[keys['clip']] or {}
    for _ in range(NUM_WINDOWS):
        for _ in range(accumulation):
            for generator in generators:
                images = torch.randn(4, 3, generator=generator)
                with wrapper.optim_context(model):
                    loss = model(images).float().square().mean()
                loss = loss / len(generators) / accumulation
                (wrapper.guard.scaler.scale(loss)).backward()
        norms.append(
            float(
                total_norm(
                    [p.grad for p in model.parameters()],
                    float(clip.get('norm_type', 2.0)),
                )
            )
            / wrapper.guard.scaler.get_scale()
        )
        wrapper.step()
        wrapper.zero_grad()
    return norms


def cells(world_size):
    """Return the cells: each way takes its turn with all other options."""
    is_hybrid = world_size == 4
    ways = [way for way in WAYS if way.startswith('hybrid') == is_hybrid]
    clips = ('norm', 'inf') if is_hybrid else CLIPS
    optimizers = ('sgd', 'fused') if is_hybrid else OPTIMIZERS
    precisions = ('fp32', 'fp16', 'bf16 weights')
    kinds = [
        *itertools.product(precisions, optimizers, clips),
        *itertools.product(('bf16 policy',), ('sgd', 'fused'), ('norm',)),
    ]
    for number, (precision, optimizer, clip) in enumerate(kinds):
        # Of weights in bfloat16, each cell meets each fault.
        is_whole = precision == 'bf16 weights' and not is_hybrid
        num_sites = len(SITES) if is_whole else 1
        for turn, way in itertools.product(range(num_sites), ways):
            turn += ways.index(way)
            yield dict(
                way=way,
                site=SITES[(number + turn) % len(SITES)],
                struck=(number + turn // 2) % world_size,
                precision=precision,
                optimizer=optimizer,
                clip=clip,
                accumulation=1 + (number // 2 + turn) % 2,
            )


def main(work_dir):
    dist.init_process_group('gloo', timeout=timedelta(seconds=60))
    seen = []
    for cell in cells(dist.get_world_size()):
        try:
            seen.append((cell, see(**cell)))
        except Exception as error:
            raise RuntimeError(f'in {cell}') from error
    clean = []
    for clip in ('norm', 'inf'):
        keys = dict(precision='fp32', optimizer='sgd', clip=clip)
        whole = whole_norms(**keys)
        for way in dict.fromkeys(cell['way'] for cell, _ in seen):
            clean.append((way, clip, train(way, **keys)[3], whole))
    path = Path(work_dir) / f'rank_{dist.get_rank()}.json'
    path.write_text(json.dumps(dict(seen=seen, clean=clean)))
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
