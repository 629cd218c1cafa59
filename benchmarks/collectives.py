"""All-reduces in the alpha-beta model, by formula and step by step.

A message takes a latency and its bytes by the bandwidth; adding numbers up
takes nothing, and all links are alike: R. Thakur, R. Rabenseifner, W. Gropp,
*Optimization of Collective Communication Operations in MPICH*, 2005,
<https://doi.org/10.1177/1094342005051521>. Numbers of ranks are powers of two.

An algorithm is a list of steps: from whom each rank receives (from itself:
nothing comes), and how many bytes.
"""

from itertools import product
from math import log2
from typing import NamedTuple

import numpy as np

GRADIENTS = 4 * 25_557_032  # bytes of ResNet-50's, float32
NUM_DRAWS = 11


class Network(NamedTuple):
    name: str
    latency: float  # in microseconds
    bandwidth: float  # in GB/s


def ring(num_ranks, size):
    """Reduce-scatter and all-gather: each part goes round twice."""
    left = np.roll(np.arange(num_ranks), 1)
    return [(left, size / num_ranks)] * (2 * (num_ranks - 1))


def tree(num_ranks, size):
    """All of it to rank 0 and back, along a binomial tree."""
    ranks = np.arange(num_ranks)
    up, down = [], []
    for distance in distances(num_ranks):
        place = ranks % (2 * distance)
        up.append((np.where(place == 0, ranks + distance, ranks), size))
        senders = np.where(place == distance, ranks - distance, ranks)
        down.insert(0, (senders, size))
    return up + down


def halving(num_ranks, size):
    """Reduce-scatter of halves, with ever nearer ranks, and back."""
    ranks = np.arange(num_ranks)
    gather = [
        (ranks ^ distance, size * distance / num_ranks)
        for distance in distances(num_ranks)
    ]
    return gather[::-1] + gather


def distances(num_ranks):
    return [2**power for power in range(int(log2(num_ranks)))]


# Of each its steps, and by formula how many latencies and sizes it takes.
ALGORITHMS = {
    'ring': (ring, lambda p: (2 * (p - 1), 2 * (p - 1) / p)),
    'tree': (tree, lambda p: (2 * log2(p), 2 * log2(p))),
    'halving': (halving, lambda p: (2 * log2(p), 2 * (p - 1) / p)),
}


def predict(name, num_ranks, size, network):
    """Milliseconds by formula; ``size`` in bytes."""
    latencies, sizes = ALGORITHMS[name][1](num_ranks)
    transfer = 1e-3 * size / network.bandwidth  # GB/s are 1,000 bytes/us
    return 1e-3 * (latencies * network.latency + sizes * transfer)


def simulate(name, num_ranks, size, network, jitter=0.0, rng=None):
    """Milliseconds until the last rank has the sum.

    Each message leaves late by a random time, exponential, with a mean of
    ``jitter`` latencies.
    """
    clocks = np.zeros(num_ranks)  # in microseconds
    for senders, num_bytes in ALGORITHMS[name][0](num_ranks, size):
        late = 0.0
        if jitter:
            late = rng.exponential(jitter * network.latency, num_ranks)
        arrivals = np.maximum(clocks, clocks[senders] + late)
        arrivals += network.latency + 1e-3 * num_bytes / network.bandwidth
        is_idle = senders == np.arange(num_ranks)
        clocks = np.where(is_idle, clocks, arrivals)
    return 1e-3 * clocks.max()


def foresee(networks, all_ranks, row_bytes, jitter, seed=0):
    """Rows: a message with ``row_bytes`` of each rank, beside gradients."""
    rng = np.random.default_rng(seed)
    for network, num_ranks in product(networks, all_ranks):
        best = min(
            predict(name, num_ranks, GRADIENTS, network) for name in ALGORITHMS
        )
        for name, (find_steps, _) in ALGORITHMS.items():
            job = (name, num_ranks, num_ranks * row_bytes, network)
            late = [simulate(*job, jitter, rng) for _ in range(NUM_DRAWS)]
            senders = [each for each, _ in find_steps(*job[1:3])]
            yield dict(
                network=network.name,
                algorithm=name,
                ranks=num_ranks,
                bytes=job[2],
                steps=len(senders),
                messages=int(np.sum(senders != np.arange(num_ranks))),
                ms=predict(*job),
                late_ms=np.median(late),
                two_fixed_ms=2 * predict(name, num_ranks, row_bytes, network),
                gradients_ms=best,
                percent=100 * predict(*job) / best,
            )


def draw(rows, measured, path):
    """Time and share against ranks: foreseen lines, measured marks."""
    from matplotlib.figure import Figure
    from save_figure import save_figure

    figure = Figure(figsize=(8, 5), layout='constrained')
    left, right = figure.subplots(1, 2)

    def plot(axes, table, key, style, label=None, **where):
        own = [r for r in table if where.items() <= r.items()]
        xs, ys = zip(*((row['ranks'], row[key]) for row in own))
        axes.plot(xs, ys, style, label=label)

    networks = sorted({row['network'] for row in rows})
    for color, network in zip(('C0', 'C1'), networks):
        for dashes, name in zip(('-', '--', ':'), ALGORITHMS):
            own = dict(network=network, algorithm=name)
            style, label = color + dashes, f'{network}, {name}'
            plot(left, rows, 'ms', style, label, **own)
            plot(left, rows, 'late_ms', color + 'x', **own)
            plot(right, rows, 'percent', style, **own)
        label = f'{network}, gradients'
        plot(left, rows, 'gradients_ms', color + '-.', label, **own)
    plot(left, rows, 'host_ms', 'k-', 'Python', **own)
    for mark, way in zip('os^', dict.fromkeys(r['sharing'] for r in measured)):
        own = dict(sharing=way, span='update')
        plot(left, measured, 'more_ms', 'k' + mark, f'{way}, measured', **own)
    ticks = sorted({row['ranks'] for row in [*rows, *measured]})
    for axes in (left, right):
        axes.set(xscale='log', yscale='log', xlabel='ranks')
        axes.set_xticks([], minor=True)
        axes.set_xticks(ticks, ticks)
    left.set_ylabel('milliseconds')
    right.set_ylabel("percent of the gradients' all-reduce")
    figure.legend(loc='outside lower center', ncols=4)
    save_figure(figure, path)
