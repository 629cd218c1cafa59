"""A guarded update of this checkout beside that of another one.

Both run in processes of their own, which take turns, so that a machine that
gets slower slows down both. Times are processor times.
"""

import json
import os
import random
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Dict, Iterator, List, Tuple

import torch
from parameter_sets import PARAMETER_SETS
from rich import box
from rich.console import Console
from rich.table import Table
from update_sides import Guarded

__all__ = ['compare', 'measure_updates']

NUM_PROCESSES = 5  # of each checkout
NUM_WARM_UPS = 5


def kinds(args: Any) -> Iterator[Tuple[str, str, str, str]]:
    """Yield the combinations that the options name."""
    yield from product(
        args.params, args.precisions, args.optimizers, args.clips
    )


def measure_updates(args: Any, optimizers: Any, clips: Any) -> None:
    """Print the median milliseconds of a guarded update of each kind."""
    times: Dict[str, float] = {}
    for kind in kinds(args):
        params, precision, optimizer, clip = kind
        torch.manual_seed(args.seed)
        model = PARAMETER_SETS[params]()
        grads = [torch.randn_like(param) for param in model.parameters()]
        build = optimizers[optimizer]
        side = Guarded((model, grads, build, clips[clip], precision == 'fp16'))
        spent = []
        for _ in range(NUM_WARM_UPS + args.repeat):
            side.prepare()
            start = time.process_time()
            side.run()
            spent.append(1e3 * (time.process_time() - start))
        times[', '.join(kind)] = median(spent[NUM_WARM_UPS:])
    print(json.dumps(times))


def compare(argv: List[str], against: Path, is_markdown: bool) -> None:
    """Print the ratio of the medians of both checkouts for each kind.

    Args:
        argv: The options of benchmark.py without ``--against``.
        against: The folder of the other checkout.
        is_markdown: Whether to print the table as Markdown.
    """
    script = Path(__file__).with_name('benchmark.py')
    trees = {'this': script.parents[1], 'other': against.resolve()}
    times: Dict[str, List[Dict[str, float]]] = {name: [] for name in trees}
    for _ in range(NUM_PROCESSES):
        for name in random.sample(list(trees), len(trees)):
            output = subprocess.run(
                [sys.executable, str(script), *argv, '--times'],
                env={**os.environ, 'PYTHONPATH': str(trees[name])},
                stdout=subprocess.PIPE,
                check=True,
            ).stdout
            times[name].append(json.loads(output.splitlines()[-1]))
    style = box.MARKDOWN if is_markdown else box.ROUNDED
    table = Table('update', 'this, ms', 'other, ms', 'ratio', box=style)
    for kind in times['this'][0]:
        this, other = (
            median(row[kind] for row in times[name]) for name in trees
        )
        ratio = f'{this / other:.3f}'
        table.add_row(kind, f'{this:.2f}', f'{other:.2f}', ratio)
    Console(width=120).print(table)
