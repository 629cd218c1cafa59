"""Measure the cost of the safe operations and layers beside plain ones.

Forward and backward on 64 tokens a sample, in pairs in random order; a ratio
is that of a pair. The plain operations are PyTorch's: `rms_norm`,
`MultiheadAttention` with its fused attention.

Example:
    python benchmarks/benchmark_safe_ops.py --threads 1 --json safe.json
"""

import argparse
import random
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
from benchmark import NUM_WARM_UPS, describe_machine, measure, save, show
from torch import nn
from torch.nn import functional as F

from mmnanguard.models import SafeAdaLNZero, SafeAttention, SafeRMSNorm
from mmnanguard.numerics import (
    masked_mean,
    masked_softmax,
    safe_divide,
    safe_log,
    safe_norm,
    safe_sqrt,
)

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16}
NUM_TOKENS = 64
NUM_HEADS = 8


class PlainAdaLNZero(nn.Module):
    """SafeAdaLNZero without a bound, on PyTorch's norm."""

    def __init__(self, dims):
        super().__init__()
        self.norm = nn.RMSNorm(dims, elementwise_affine=False)
        self.project = nn.Linear(dims, 3 * dims)

    def forward(self, x, cond):
        """Normalise and modulate, as SafeAdaLNZero does."""
        raw = self.project(F.silu(cond)).unsqueeze(1)
        scale, shift, gate = raw.chunk(3, dim=-1)
        return self.norm(x) * (1 + scale) + shift, gate


def make_cases(dims, dtype):
    """Return a plain and a safe function for each operation.

    All take tokens, positive tokens and a mask, as :func:`measure_case`
    makes them.
    """
    rms, safe_rms = nn.RMSNorm(dims).to(dtype), SafeRMSNorm(dims).to(dtype)
    ada = PlainAdaLNZero(dims).to(dtype)
    safe_ada = SafeAdaLNZero(dims, dims).to(dtype)
    heads = nn.MultiheadAttention(dims, NUM_HEADS, batch_first=True).to(dtype)
    safe_heads = SafeAttention(dims, NUM_HEADS).to(dtype)

    def plain_mean(x, y, mask):
        mask = mask.unsqueeze(-1)
        return (x * mask).sum(1) / mask.sum(1)

    def plain_softmax(x, y, mask):
        return x.mT.masked_fill(~mask.unsqueeze(1), -float('inf')).softmax(-1)

    def attend(x, y, mask):
        return heads(x, x, x, key_padding_mask=~mask, need_weights=False)[0]

    return {
        'safe_divide': (
            lambda x, y, mask: x / y,
            lambda x, y, mask: safe_divide(x, y),
        ),
        'safe_sqrt': (
            lambda x, y, mask: y.sqrt(),
            lambda x, y, mask: safe_sqrt(y),
        ),
        'safe_log': (
            lambda x, y, mask: y.log(),
            lambda x, y, mask: safe_log(y),
        ),
        'safe_norm': (
            lambda x, y, mask: torch.linalg.vector_norm(x, dim=-1),
            lambda x, y, mask: safe_norm(x),
        ),
        'masked_mean': (
            plain_mean,
            lambda x, y, mask: masked_mean(x, mask.unsqueeze(-1), 1),
        ),
        'masked_softmax': (
            plain_softmax,
            lambda x, y, mask: masked_softmax(x.mT, mask.unsqueeze(1)),
        ),
        'SafeRMSNorm': (
            lambda x, y, mask: rms(x),
            lambda x, y, mask: safe_rms(x),
        ),
        'SafeAdaLNZero': (
            lambda x, y, mask: ada(x, y[:, 0])[0],
            lambda x, y, mask: safe_ada(x, y[:, 0])[0],
        ),
        'SafeAttention': (attend, lambda x, y, mask: safe_heads(x, mask)),
    }


class Side:
    """Forward and backward of a function, for ``measure``."""

    def __init__(self, function, x, y, mask):
        self.function, self.args = function, (x, y, mask)

    def prepare(self):
        """Do nothing: no run changes anything."""

    def run(self):
        """Run forward and backward."""
        result = self.function(*self.args)
        inputs = self.args[:2]
        torch.autograd.grad(result.sum(), inputs, allow_unused=True)


def measure_case(name, dtype, args, device):
    """Return the row of an operation: its times and their ratio."""
    shape = args.samples, NUM_TOKENS, args.dims
    x = torch.randn(shape, dtype=DTYPES[dtype], device=device)
    y = x.abs() + 0.1
    mask = torch.arange(NUM_TOKENS, device=device) < NUM_TOKENS - 8
    tensors = x.requires_grad_(), y.detach().requires_grad_()
    with torch.device(device):
        pair = make_cases(args.dims, DTYPES[dtype])[name]
    if args.compile:
        pair = [torch.compile(function, fullgraph=True) for function in pair]
    mask = mask.expand(args.samples, -1)
    sides = [Side(function, *tensors, mask) for function in pair]
    clock, wait = time.perf_counter, torch.cuda.synchronize
    if device == 'cpu':
        wait = int  # does nothing
    if device == 'cpu' and args.threads == 1:
        # It leaves out the time of other processes on the machine.
        clock = time.thread_time
    measure(sides, NUM_WARM_UPS, wait)
    times = measure(sides, args.repeat, wait, clock)
    ratios = np.percentile(times[:, 1] / times[:, 0], (50, 10, 90))
    keys = ('plain_ms', 'safe_ms', 'ratio', 'ratio_p10', 'ratio_p90')
    numbers = map(float, [*np.median(times, axis=0), *ratios])
    row = {key: round(number, 3) for key, number in zip(keys, numbers)}
    return dict(operation=name, dtype=dtype, **row)


def main(argv=None):
    """Run the benchmark; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--samples', type=int, default=32)
    add('--dims', type=int, default=256)
    add('--repeat', type=int, default=30)
    add('--compile', action='store_true', help='both, with torch.compile')
    add('--threads', type=int, default=1)
    add('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    add('--markdown', action='store_true')
    add('--json', type=Path, metavar='FILE')
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    random.seed(0)
    names = make_cases(NUM_HEADS, torch.float32)
    rows = []
    for name, dtype in product(names, DTYPES):
        rows.append(measure_case(name, dtype, args, args.device))
        print(name, dtype, rows[-1]['ratio'], sep=', ', file=sys.stderr)
    machine = describe_machine(args.device, cpu_note='no GPU')
    machine += f', {args.samples} x {NUM_TOKENS} tokens of {args.dims}'
    machine += ', compiled' * args.compile
    show(machine, rows, args.markdown)
    save(machine, rows, args.json)
    return 0


if __name__ == '__main__':
    sys.exit(main())
