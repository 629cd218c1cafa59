"""Measure what it costs that ranks agree on each update.

Measured on gloo processes: MMEngine's wrapper, the guard, the guard without
agreement, and its message alone take turns, in a random order that is the same
on all ranks, which wait for one another before each update. A time is that of
the slowest rank. An update is optim_context, step and zero_grad; an iteration
has forward and backward, too. Simulated on more ranks: the message that was
counted here, beside the gradients of ResNet-50.

Example:
    python benchmarks/benchmark_ranks.py --threads 1 --picture ranks.svg
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
import timeit
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from benchmark import NUM_WARM_UPS, describe_machine, show
from benchmark_hooks import MODELS, ResNet
from collectives import Network, draw, foresee
from mmengine.model import (
    MMDistributedDataParallel,
    MMFullyShardedDataParallel,
)
from mmengine.optim import OptimWrapper
from mmengine.structures import BaseDataElement
from torch import distributed as dist
from torch import multiprocessing
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mmnanguard.core import Observation, Shard
from mmnanguard.numerics.update.agree import (
    FIELDS,
    SHARD_FIELDS,
    merge,
    merge_rows,
    to_row,
)
from mmnanguard.optim import NanGuardOptimWrapper
from mmnanguard.optim.guarded_step import guarded_step

CPU = torch.device('cpu')
WAYS = {
    'ddp': partial(MMDistributedDataParallel, broadcast_buffers=False),
    'fsdp1': partial(
        MMFullyShardedDataParallel, device_id=CPU, use_orig_params=True
    ),
    'fsdp2': fully_shard,
}
NOTHING = nullcontext()


def agree_alone(seen, norm_type=2.0):
    """Agree without other ranks, as if this rank had all shards."""
    return merge([seen], seen, norm_type) if seen.shards else seen


class Collectives(TorchDispatchMode):
    """A record of the bytes of each reduction, from any caller."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            # DTensor then calls this again with its local tensors.
            return NotImplemented
        if 'c10d' in func.namespace and 'reduce' in func.__name__:
            tensors = filter(torch.is_tensor, tree_flatten(args)[0])
            self.sizes.append(sum(tensor.nbytes for tensor in tensors))
        return func(*args, **(kwargs or {}))


class Side:
    """A model and its wrapper, shared in some way over the ranks."""

    def __init__(self, build_wrapper, way, args, **patch):
        torch.manual_seed(0)
        self.model = WAYS[way](ResNet(MODELS[args.model]))
        sgd = torch.optim.SGD(self.model.parameters(), lr=1e-9, momentum=0.9)
        # The norm is always above, so that all sides have to clip.
        self.wrapper = build_wrapper(sgd, clip_grad=dict(max_norm=1e-3))
        self.patch = mock.patch.dict(guarded_step.__globals__, **patch)

    def iterate(self, batch, spy=NOTHING):
        """Run an iteration; return the seconds of its update and of all."""
        start = time.perf_counter()
        with self.wrapper.optim_context(self.model):
            entered = time.perf_counter()
            loss = self.model(**batch, mode='loss')['loss']
        self.wrapper.backward(loss)
        done = time.perf_counter()
        dist.barrier()
        with self.patch, spy:
            ready = time.perf_counter()
            self.wrapper.step()
            self.wrapper.zero_grad()
            end = time.perf_counter()
        update = entered - start + end - ready
        return update, update + done - entered


def measure_way(way, args):
    """Return two rows of times and one of counts; called on all ranks."""
    sides = {
        'plain': Side(OptimWrapper, way, args),
        'guarded': Side(NanGuardOptimWrapper, way, args),
        'alone': Side(NanGuardOptimWrapper, way, args, agree=agree_alone),
    }
    torch.manual_seed(dist.get_rank())
    sample = BaseDataElement(gt_label=torch.tensor([1]))
    batch = dict(
        inputs=torch.randn(args.batch_size, 3, 32, 32),
        data_samples=args.batch_size * [sample],
    )
    counts = dict(ranks=dist.get_world_size(), sharing=way)
    for name, side in sides.items():
        # The guard's first updates also send whether a step made NaN.
        for _ in range(NUM_WARM_UPS):
            side.iterate(batch)
        spy = Collectives()
        side.iterate(batch, spy)
        counts[f'{name}_messages'] = len(spy.sizes)
        counts[f'{name}_bytes'] = sum(spy.sizes)
    message = torch.zeros(counts['guarded_bytes'] // 8, dtype=torch.float64)

    def send():
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(message)
        return [time.perf_counter() - start] * 2

    turns = [partial(side.iterate, batch) for side in sides.values()] + [send]
    times = torch.zeros(NUM_WARM_UPS + args.repeat, 2, 4, dtype=torch.float64)
    order = random.Random(args.seed)
    for spans in times:
        for index in order.sample(range(4), 4):
            spans[:, index] = torch.tensor(turns[index]())
    dist.all_reduce(times, dist.ReduceOp.MAX)
    times = 1e3 * times[NUM_WARM_UPS:].permute(1, 2, 0).numpy()
    counts['message_ms'] = np.median(times[0, 3])
    rows = []
    for span, side_times in zip(('update', 'iteration'), times):
        row = dict(ranks=counts['ranks'], sharing=way, span=span)
        row.update(zip((f'{n}_ms' for n in sides), np.median(side_times, 1)))
        plain, guarded, alone, _ = side_times
        row['more_ms'] = np.median(guarded - alone)
        for name, other in (('alone', alone), ('plain', plain)):
            ratios = np.percentile(guarded / other, (50, 10, 90))
            keys = (f'to_{name}', f'{name}_p10', f'{name}_p90')
            row.update(zip(keys, ratios))
        rows.append(row)
    return rows, counts


def run_rank(rank, num_ranks, folder, args):
    """Measure in a process; rank 0 writes the result into the folder."""
    torch.set_num_threads(args.threads)
    dist.init_process_group(
        'gloo',
        init_method=f'file://{folder}/store',
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(minutes=5),  # a hang ends with a traceback
    )
    for way in args.sharing:
        measured = measure_way(way, args)
        if rank == 0:
            Path(folder, way).write_text(json.dumps(measured))
            print(num_ranks, way, sep=', ', file=sys.stderr)
    dist.destroy_process_group()
    # Without finalizing Python: a thread of gloo that drops a tensor waits for
    # an interpreter that is gone, and C++ then aborts the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def measure(args):
    """Return rows of times, and of counts."""
    rows, counts = [], []
    for num_ranks in args.ranks:
        with tempfile.TemporaryDirectory() as folder:
            job = (num_ranks, folder, args)
            multiprocessing.spawn(run_rank, job, num_ranks)
            for way in args.sharing:
                times, counted = json.loads(Path(folder, way).read_text())
                rows += times
                counts.append(counted)
    return rows, counts


def measure_host(num_ranks, row_bytes):
    """Return the milliseconds that Python takes to read a message."""
    num_parts = (row_bytes // 8 - len(FIELDS)) // len(SHARD_FIELDS)
    seen = Observation(1.0, shards=(Shard(0, 1.0),) * num_parts)
    rows = torch.tensor([to_row(seen)] * num_ranks, dtype=torch.float64)
    job = partial(merge_rows, rows, seen, 2.0)
    return 1e3 * np.median(timeit.repeat(job, number=1, repeat=20))


def tidy(row):
    """Round the numbers of a row to four digits."""
    digits = {k: f'{v:.4g}' for k, v in row.items() if isinstance(v, float)}
    return {**row, **{key: float(value) for key, value in digits.items()}}


def main(argv=None):
    """Run the benchmark; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    several = dict(nargs='+', metavar='N', type=int)
    add('--ranks', choices=range(2, 17), default=[2, 4], **several)
    add('--sharing', choices=WAYS, nargs='+', default=[*WAYS])
    add('--model', choices=[*MODELS][:2], default='resnet18')
    add('--batch-size', type=int, default=4)
    add('--repeat', type=int, default=30)
    add('--threads', type=int, default=1)
    powers = [2**power for power in range(1, 15)]
    add('--simulate', choices=powers, default=[8, 256, 4096], **several)
    link = dict(type=float, nargs=2, metavar=('MICROSECONDS', 'GB_PER_S'))
    add('--ethernet', default=[50.0, 1.25], **link)
    add('--infiniband', default=[5.0, 25.0], **link)
    add('--jitter', type=float, default=1.0, help='mean, in latencies')
    add('--seed', type=int, default=0)
    add('--markdown', action='store_true')
    add('--json', type=Path, metavar='FILE')
    add('--picture', type=Path, metavar='FILE', help='an .svg')
    args = parser.parse_args(argv)
    if min(args.repeat, *args.ethernet, *args.infiniband) <= 0:
        parser.error('--repeat, --ethernet, --infiniband: must be above 0')
    torch.set_num_threads(args.threads)
    times, counts = measure(args)
    # Each rank sends a row; the message holds the rows of all ranks.
    row_bytes = max(row['guarded_bytes'] // row['ranks'] for row in counts)
    links = dict(Ethernet=args.ethernet, InfiniBand=args.infiniband)
    networks = [Network(name, *link) for name, link in links.items()]
    rows = [*foresee(networks, args.simulate, row_bytes, args.jitter)]
    hosts = {num: measure_host(num, row_bytes) for num in args.simulate}
    rows = [dict(row, host_ms=hosts[row['ranks']]) for row in rows]
    report = dict(machine=describe_machine('cpu', cpu_note='gloo'))
    print(*report.values())
    for key, table in dict(times=times, counts=counts, more=rows).items():
        report[key] = [*map(tidy, table)]
        show(key, report[key], args.markdown)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2))
    if args.picture:
        draw(report['more'], report['times'], args.picture)
    return 0


if __name__ == '__main__':
    sys.exit(main())
