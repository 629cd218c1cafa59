"""Profile the stages of a guarded update.

Prints the median time of each stage, its calls included, beside the whole.

Example:
    python benchmarks/profile_update.py --params 1000-small --optimizer SGD
"""

import argparse
import importlib
import sys
import time
from collections import defaultdict
from functools import wraps
from statistics import median
from unittest import mock

import torch
from benchmark import CLIPS, NUM_WARM_UPS, OPTIMIZERS, describe_machine
from parameter_sets import PARAMETER_SETS
from rich import box
from rich.console import Console
from rich.table import Table
from update_sides import Guarded

from mmnanguard.numerics.snapshot.snapshot import Snapshot
from mmnanguard.optim.guard import Guard

# An import statement would give the functions of the same names.
OBSERVE = importlib.import_module('mmnanguard.numerics.update.observe')
STEP = importlib.import_module('mmnanguard.optim.guarded_step')


def stages_of(side):
    """Return the owner and the name of each stage's function, in order.

    A further dash marks a stage that is part of the stage above.
    """
    return {
        'the whole update': (side, 'run'),
        '- begin: copies, versions': (Guard, 'open'),
        '- find gradients': (Guard, 'collect'),
        '- observe': (STEP, 'observe'),
        '-- a norm of each gradient, and of each buffer': (
            OBSERVE,
            'tensor_norms',
        ),
        '-- what forward changed': (Snapshot, 'compare'),
        '-- the host read': (OBSERVE, 'read_once'),
        '- decide': (STEP, 'decide'),
        '- apply': (side.wrapper.guard.params, 'apply_update'),
        '-- optimizer.step': (side.optimizer, 'step'),
        '- end of the window': (Guard, 'close'),
        '- zero_grad': (side.wrapper, 'zero_grad'),
    }


def timed(function, spent):
    """Wrap a function to add its milliseconds to the last item of a list."""

    @wraps(function)
    def call(*args, **kwargs):
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[-1] += 1e3 * (time.perf_counter() - start)

    return call


def profile(side, repeat):
    """Return the median milliseconds of each stage, by its name."""
    for _ in range(NUM_WARM_UPS):
        side.prepare()
        side.run()
    times = defaultdict(list)
    stages = stages_of(side)
    for name, (owner, attribute) in stages.items():
        for _ in range(repeat):
            # Only a stage at a time is timed, so that clocks do not add up.
            times[name].append(0.0)
            function = getattr(owner, attribute)
            stage = timed(function, times[name])
            side.prepare()
            with mock.patch.object(owner, attribute, stage):
                side.run()
    return {name: median(spent) for name, spent in times.items()}


def main(argv=None):
    """Run the profile; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--params', choices=PARAMETER_SETS, default='resnet50')
    add('--optimizer', choices=OPTIMIZERS, default='fused AdamW')
    add('--clip', choices=CLIPS, default='above')
    add('--precision', choices=['fp32', 'fp16'], default='fp16')
    add('--repeat', type=int, default=30)
    add('--threads', type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    model = PARAMETER_SETS[args.params]()
    grads = [torch.randn_like(param) for param in model.parameters()]
    build, clip = OPTIMIZERS[args.optimizer], CLIPS[args.clip]
    side = Guarded((model, grads, build, clip, args.precision == 'fp16'))
    table = Table('stage', 'ms', box=box.MARKDOWN)
    for name, spent in profile(side, args.repeat).items():
        table.add_row(name, f'{spent:.2f}')
    console = Console(width=100)
    console.print(describe_machine('cpu', 'no GPU'), table, sep='\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
