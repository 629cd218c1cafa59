"""Measure a guarded update beside all updates that users run without it.

An update begins with gradients, enters ``optim_context``, then calls ``step``
and ``zero_grad``. Forward and backward are left out: they are equal for all
sides. The sides take turns in random order and begin with equal gradients; a
ratio compares two sides within a round.
accelerate and Lightning are measured where they are installed.

Example:
    python benchmarks/benchmark.py --params resnet50 --threads 1 --markdown
"""

import argparse
import gc
import importlib.util
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
from against import compare, measure_updates
from parameter_sets import PARAMETER_SETS
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, optim
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from update_sides import GUARDED, SIDES

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
CPU_NOTE = (
    "no GPU (fp16: each library's own step with torch.amp.GradScaler('cpu'))"
)


class HostReads(TorchFunctionMode):
    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func in READS
        return func(*args, **(kwargs or {}))


def find_sides():
    return {
        name: side
        for name, side in SIDES.items()
        if name not in ('accelerate', 'Lightning')
        or importlib.util.find_spec(name.lower())
    }


def count_reads(side):
    """Count how often Python waits for numbers from the device.

    ``optimizer.step`` is left out: it is equal for all sides and reads
    counters on the CPU.
    """
    side.prepare()
    optimizer = getattr(side.optimizer, 'optimizer', side.optimizer)
    with mock.patch.object(optimizer, 'step'), HostReads() as reads:
        side.run()
    return reads.count


def count_work(side, device):
    """Count the operators of an update, its kernels on a GPU, and its bytes.

    The bytes are the most that the update holds beyond those held before.
    """
    side.prepare()
    with record(device) as profiler:
        side.run()
    events = profiler.profiler.kineto_results.events()
    operators = [event for event in profiler.events() if not event.cpu_parent]
    return dict(
        operators=sum(e.name.startswith('aten::') for e in operators),
        kernels=sum('LaunchKernel' in event.name() for event in events),
        peak_bytes=peak_bytes(profiler, device),
    )


def record(device):
    """Return a profiler of operators, kernels and memory."""
    activities = [ProfilerActivity.CPU]
    if device == 'cuda':
        activities.append(ProfilerActivity.CUDA)
    return profile(activities=activities, profile_memory=True)


def peak_bytes(profiler, device):
    """Return the most bytes that were held beyond those held before."""
    sizes = sorted(
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == '[memory]'
        and device in str(event.device_type()).lower()
    )
    return int(max(0, *np.cumsum([0, *(size for _, size in sizes)])))


def bytes_held():
    storages = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        if type(tensor) is Tensor and tensor.layout is torch.strided
    }
    return sum(storages.values())


def keep_warm(side):
    """Run a side until its first-time work is done.

    Returns:
        The bytes of tensors that the side keeps, optimizer states included.
    """
    side.prepare()
    gc.collect()
    before = bytes_held()
    for _ in range(NUM_WARM_UPS):
        side.prepare()
        side.run()
    return bytes_held() - before


def measure(sides, repeat, wait=lambda: None, clock=time.perf_counter):
    """Return milliseconds by round and side; ``prepare`` is left out."""
    times = np.empty((repeat, len(sides)))
    for row in times:
        for index in random.sample(range(len(sides)), len(sides)):
            sides[index].prepare()
            wait()
            start = clock()
            sides[index].run()
            wait()
            row[index] = 1e3 * (clock() - start)
    return times


def measure_update(kind, repeat, device):
    """Measure times, reads, work and bytes of all sides for a combination."""
    params, precision, optimizer, clip = kind
    model = PARAMETER_SETS[params]().to(device)
    grads = [torch.randn_like(param) for param in model.parameters()]
    build = OPTIMIZERS[optimizer]
    setting = (model, grads, build, CLIPS[clip], precision == 'fp16')
    sides, kept = {}, {}
    for name, build_side in find_sides().items():
        side = build_side(setting)
        try:
            kept[name] = keep_warm(side)
        except NotImplementedError as error:  # Lightning, fused and clip
            print(f'{name} cannot do {kind}: {error}', file=sys.stderr)
        else:
            sides[name] = side
    wait = [] if device == 'cpu' else [getattr(torch, device).synchronize]
    times = measure([*sides.values()], repeat, *wait)
    row = dict(zip(KEYS, kind), sides={})
    for (name, side), side_times in zip(sides.items(), times.T):
        ratios = np.percentile(times[:, 0] / side_times, (50, 10, 90))
        numbers = [float(np.median(side_times)), *map(float, ratios)]
        keys = ('ms', 'ratio', 'ratio_p10', 'ratio_p90')
        row['sides'][name] = dict(
            zip(keys, (round(number, 3) for number in numbers)),
            reads=count_reads(side),
            **count_work(side, device),
            bytes_kept=kept[name] - kept['bare step'],
        )
    return row


def describe_machine(device, cpu_note=CPU_NOTE):
    file = Path('/proc/cpuinfo')
    info = file.read_text() if file.exists() else ''
    cpu = re.search('model name.*: (.*)|$', info)[1] or platform.machine()
    gpu = torch.cuda.get_device_name() if device == 'cuda' else cpu_note
    versions = f'torch {torch.__version__}, mmengine {mmengine.__version__}'
    return f'{cpu}, {torch.get_num_threads()} threads, {gpu}, {versions}'


def flatten(row):
    """Return the guard's time, and its ratio to each other side, as texts."""
    flat = {key: row[key] for key in KEYS}
    for name, side in row['sides'].items():
        span = '{ratio:.2f} ({ratio_p10:.2f}-{ratio_p90:.2f})'.format(**side)
        if name == GUARDED:
            flat[f'{name}, ms'] = f'{side["ms"]:.1f}'
        else:
            flat[name] = span
    return flat


def show(machine, rows, is_markdown):
    keys = max(rows, key=len)
    table = Table(*keys, box=box.MARKDOWN if is_markdown else box.ROUNDED)
    for row in rows:
        table.add_row(*(str(row.get(key, '')) for key in keys))
    Console(width=200).print(machine, table, sep='\n')


def save(machine, rows, file):
    if file:
        report = dict(machine=machine, rows=rows)
        file.write_text(json.dumps(report, indent=2) + '\n')


def draw(machine, rows, file):
    """Draw the guard's ratio to each side: median, 10th to 90th percentile."""
    from matplotlib.figure import Figure
    from save_figure import save_figure

    # A dict keeps the order; some rows may lack a side.
    names = {}
    for row in rows:
        names.update(dict.fromkeys(row['sides']))
    names.pop(GUARDED)
    size = (8, 1 + 0.35 * len(rows))
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots()
    for name, marker in zip(names, 'osD^vP'):
        placed = [
            (place, row['sides'][name])
            for place, row in enumerate(rows)
            if name in row['sides']
        ]
        places, sides = zip(*placed)
        low = [side['ratio'] - side['ratio_p10'] for side in sides]
        high = [side['ratio_p90'] - side['ratio'] for side in sides]
        axes.errorbar(
            [side['ratio'] for side in sides],
            places,
            xerr=(low, high),
            fmt=marker,
            label=name,
            alpha=0.8,
        )
    axes.set_yticks(
        range(len(rows)), [', '.join(row[k] for k in KEYS) for row in rows]
    )
    axes.invert_yaxis()
    axes.axvline(1, color='black', linewidth=1)
    axes.set_xlabel('time of a guarded update / time of ...')
    figure.suptitle(machine, fontsize=6)
    axes.legend(fontsize=7)
    save_figure(figure, file)


def without_against(argv):
    """Return the options without ``--against``, in either of its forms."""
    options = list(argv)
    if '--against' in options:
        place = options.index('--against')
        del options[place : place + 2]
    return [item for item in options if not item.startswith('--against=')]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    choices = [*PARAMETER_SETS]
    add('--params', nargs='+', choices=choices, default=choices[:4])
    add('--precisions', nargs='+', default=['fp32', 'fp16'])
    add('--optimizers', nargs='+', choices=OPTIMIZERS, default=[*OPTIMIZERS])
    add('--clips', nargs='+', choices=CLIPS, default=['none', 'above'])
    add('--repeat', type=int, default=30)
    add('--threads', type=int, default=1)
    add('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    add('--seed', type=int, default=0)
    add('--markdown', action='store_true')
    add('--json', type=Path, metavar='FILE')
    add('--picture', type=Path, metavar='FILE', help='.svg, .png or .pdf')
    add('--against', type=Path, metavar='FOLDER', help='another checkout')
    add('--times', action='store_true', help='print times only, as JSON')
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    if args.times:
        measure_updates(args, OPTIMIZERS, CLIPS)
        return 0
    if args.against:
        if not (args.against / 'mmnanguard').is_dir():
            parser.error(f'--against: {args.against} has no mmnanguard folder')
        compare(without_against(argv), args.against, args.markdown)
        return 0
    rows = []
    for kind in product(
        args.params, args.precisions, args.optimizers, args.clips
    ):
        rows.append(measure_update(kind, args.repeat, args.device))
        ratio = rows[-1]['sides']['MMEngine']['ratio']
        print(*kind, ratio, sep=', ', file=sys.stderr)
    machine = describe_machine(args.device)
    show(machine, [flatten(row) for row in rows], args.markdown)
    save(machine, rows, args.json)
    if args.picture:
        draw(machine, rows, args.picture)
    return 0


if __name__ == '__main__':
    sys.exit(main())
