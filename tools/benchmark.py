"""What does a guarded update cost beside MMEngine's own wrapper?

An update: gradients are there, ``optim_context`` is entered, then ``step`` and
``zero_grad``. Forward and backward, the same for both, are left out. The two
take turns in random order, from the same gradients; a ratio is of one pair.

Example:
    python tools/benchmark.py --params resnet50 --markdown --json update.json
"""

import argparse
import copy
import json
import platform
import random
import re
import sys
import time
from functools import partial
from itertools import product
from pathlib import Path
from unittest import mock

import mmengine
import numpy as np
import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn, optim
from torch.overrides import TorchFunctionMode

from mmnanguard.optim import NanGuardAmpOptimWrapper, NanGuardOptimWrapper

NUM_WARM_UPS = 5  # the guard's first updates also look for changing buffers
OPTIMIZERS = {
    'SGD': partial(optim.SGD, lr=1e-9, momentum=0.9),
    'AdamW': partial(optim.AdamW, lr=1e-9),
    'fused AdamW': partial(optim.AdamW, lr=1e-9, fused=True),
}
CLIPS = {'none': None, 'above': 1.0, 'below': 1e6}  # the norm is between
KEYS = ('params', 'precision', 'optimizer', 'clip')
# GradScaler calls item, MMEngine float, the guard tolist, users' code bool.
READS = {Tensor.item, Tensor.tolist, Tensor.__float__, Tensor.__bool__}
CPU_NOTE = "no GPU (fp16, plain: MMEngine's step, torch.amp.GradScaler('cpu'))"


class CpuAmpOptimWrapper(AmpOptimWrapper):
    def __init__(self, optimizer, clip_grad):  # MMEngine's refuses a CPU
        OptimWrapper.__init__(self, optimizer, clip_grad=clip_grad)
        self.loss_scaler = torch.amp.GradScaler('cpu')
        self._scale_update_param = self.cast_dtype = None


def build_resnet50(has_buffers):  # its tensors only: it cannot be called
    def conv(inputs, outputs, size):
        norm = nn.BatchNorm2d(outputs, track_running_stats=has_buffers)
        return [nn.Conv2d(inputs, outputs, size, bias=False), norm]

    layers, inputs = conv(3, 64, 7), 64
    for width, num_blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        layers += conv(inputs, 4 * width, 1)
        for _ in range(num_blocks):
            layers += conv(inputs, width, 1) + conv(width, width, 3)
            layers += conv(width, 4 * width, 1)
            inputs = 4 * width
    return nn.Sequential(*layers, nn.Linear(inputs, 1000))


MODELS = {
    'resnet50': lambda: build_resnet50(has_buffers=False),
    'resnet50-buffers': lambda: build_resnet50(has_buffers=True),
    '1000-small': lambda: nn.ParameterList(torch.zeros(1000, 256).unbind()),
    'tiny': lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
}


class HostReads(TorchFunctionMode):
    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func in READS
        return func(*args, **(kwargs or {}))


class Update:
    """A wrapper's update, to be repeated from the same gradients."""

    def __init__(self, build_wrapper, build_optimizer, clip, model, grads):
        self.model, self.grads = copy.deepcopy(model), grads
        optimizer = build_optimizer(self.model.parameters())
        clip_grad = clip and dict(max_norm=clip)
        self.wrapper = build_wrapper(optimizer=optimizer, clip_grad=clip_grad)
        self.loss = torch.zeros((), device=grads[0].device)
        no_scaler = torch.amp.GradScaler('cpu', enabled=False)
        self.scaler = getattr(self.wrapper, 'loss_scaler', no_scaler)
        self.scaler.scale(self.loss)  # the first loss creates the scale

    def prepare(self):
        """Leave gradients as backward does; held, so that none is freed."""
        scale = self.scaler.get_scale()
        self.scaled = [grad * scale for grad in self.grads]
        for param, grad in zip(self.model.parameters(), self.scaled):
            param.grad = grad

    def run(self):
        with self.wrapper.optim_context(self.model):
            pass
        if hasattr(self.wrapper, 'guard'):
            self.wrapper.guard.add_loss(self.loss)  # as ``backward`` does
        self.wrapper.step()
        self.wrapper.zero_grad()

    def count_reads(self):
        """How often Python waits for numbers from the device. Left out is
        ``optimizer.step``, the same for both: it reads counters on the CPU.
        """
        self.prepare()
        no_step = mock.patch.object(self.wrapper.optimizer, 'step')
        with no_step, HostReads() as reads:
            self.run()
        return reads.count


def measure(plain, guarded, repeat, wait=lambda: None):
    """Time ``run``, not ``prepare``, in pairs; a GPU has to be waited for."""
    times = np.empty((NUM_WARM_UPS + repeat, 2))
    for pair in times:
        for index, side in random.sample([(0, plain), (1, guarded)], 2):
            side.prepare()
            wait()
            start = time.perf_counter()
            side.run()
            wait()
            pair[index] = 1e3 * (time.perf_counter() - start)
    times = times[NUM_WARM_UPS:]
    ratios = np.percentile(times[:, 1] / times[:, 0], (50, 10, 90))
    keys = ('plain_ms', 'guarded_ms', 'ratio', 'ratio_p10', 'ratio_p90')
    numbers = [*np.median(times, axis=0), *ratios]
    return {key: round(float(x), 3) for key, x in zip(keys, numbers)}


def measure_update(kind, repeat, device):
    """One row: a combination, its times and its host reads."""
    params, precision, optimizer, clip = kind
    model = MODELS[params]().to(device)
    grads = [torch.randn_like(param) for param in model.parameters()]
    wrappers = OptimWrapper, NanGuardOptimWrapper
    if precision == 'fp16':
        amp = CpuAmpOptimWrapper if device == 'cpu' else AmpOptimWrapper
        wrappers = amp, partial(NanGuardAmpOptimWrapper, dtype='float16')
    rest = (OPTIMIZERS[optimizer], CLIPS[clip], model, grads)
    sides = [Update(wrapper, *rest) for wrapper in wrappers]
    wait = [] if device == 'cpu' else [torch.cuda.synchronize]
    row = dict(zip(KEYS, kind), **measure(*sides, repeat, *wait))
    row['plain_reads'], row['guarded_reads'] = (s.count_reads() for s in sides)
    return row


def describe_machine(device, cpu_note=CPU_NOTE):
    file = Path('/proc/cpuinfo')
    info = file.read_text() if file.exists() else ''
    cpu = re.search('model name.*: (.*)|$', info)[1] or platform.machine()
    gpu = cpu_note if device == 'cpu' else torch.cuda.get_device_name()
    versions = f'torch {torch.__version__}, mmengine {mmengine.__version__}'
    return f'{cpu}, {torch.get_num_threads()} threads, {gpu}, {versions}'


def show(machine, rows, is_markdown, file):
    table = Table(*rows[0], box=box.MARKDOWN if is_markdown else box.ROUNDED)
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=150).print(machine, table, sep='\n')
    if file:
        report = dict(machine=machine, rows=rows)
        file.write_text(json.dumps(report, indent=2))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--params', nargs='+', choices=MODELS, default=[*MODELS][:3])
    add('--clips', nargs='+', choices=CLIPS, default=['none', 'above'])
    add('--repeat', type=int, default=30)
    add('--threads', type=int, default=torch.get_num_threads())
    add('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    add('--seed', type=int, default=0)
    add('--markdown', action='store_true')
    add('--json', type=Path, metavar='FILE')
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    rows = []
    for kind in product(args.params, ['fp32', 'fp16'], OPTIMIZERS, args.clips):
        row = measure_update(kind, args.repeat, args.device)
        rows.append(row)
        print(*kind, row['ratio'], sep=', ', file=sys.stderr)
    show(describe_machine(args.device), rows, args.markdown, args.json)
    return 0


if __name__ == '__main__':
    sys.exit(main())
