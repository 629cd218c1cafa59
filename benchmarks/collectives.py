"""All-reduces in the alpha-beta model, by formula and step by step.

A message takes a latency plus its bytes divided by the bandwidth; adding
numbers takes no time, and all links are alike: R. Thakur, R. Rabenseifner, W.
Gropp, *Optimization of Collective Communication Operations in MPICH*, 2005,
<https://doi.org/10.1177/1094342005051521>. Numbers of ranks are powers of two.

An algorithm is a list of steps. A step has the rank from which each rank
receives (a rank that receives nothing has itself), and the number of bytes.
"""

from itertools import product
from math import log2
from typing import NamedTuple

import numpy as np

GRADIENTS = 4 * 25_557_032  # bytes of ResNet-50's gradients in float32
NUM_DRAWS = 11  # simulations with different delays


class Network(NamedTuple):
    """A network with links that are all alike."""

    name: str
    latency: float  # in microseconds
    bandwidth: float  # in GB/s


def ring(num_ranks, size):
    """Return the steps in which each part goes round the ring twice."""
    left = np.roll(np.arange(num_ranks), 1)
    return [(left, size / num_ranks)] * (2 * (num_ranks - 1))


def tree(num_ranks, size):
    """Return the steps to rank 0 and back, along a binomial tree."""
    ranks = np.arange(num_ranks)
    up, down = [], []
    for distance in distances(num_ranks):
        place = ranks % (2 * distance)
        up.append((np.where(place == 0, ranks + distance, ranks), size))
        senders = np.where(place == distance, ranks - distance, ranks)
        down.insert(0, (senders, size))
    return up + down


def halving(num_ranks, size):
    """Return the steps of recursive halving, and of doubling back.

    A reduce-scatter of halves with ever nearer ranks, then an all-gather.
    """
    ranks = np.arange(num_ranks)
    gather = [
        (ranks ^ distance, size * distance / num_ranks)
        for distance in distances(num_ranks)
    ]
    return gather[::-1] + gather


def distances(num_ranks):
    """Return the powers of two below the number of ranks."""
    return [2**power for power in range(int(log2(num_ranks)))]


# For each algorithm its steps, and a formula that gives the number of
# latencies and of message sizes that it takes on p ranks.
ALGORITHMS = {
    'ring': (ring, lambda p: (2 * (p - 1), 2 * (p - 1) / p)),
    'tree': (tree, lambda p: (2 * log2(p), 2 * log2(p))),
    'halving': (halving, lambda p: (2 * log2(p), 2 * (p - 1) / p)),
}


def predict(name, num_ranks, size, network):
    """Return the milliseconds by the formula; ``size`` is in bytes."""
    latencies, sizes = ALGORITHMS[name][1](num_ranks)
    transfer = 1e-3 * size / network.bandwidth  # GB/s are 1,000 bytes/us
    return 1e-3 * (latencies * network.latency + sizes * transfer)


def simulate(name, num_ranks, size, network, jitter=0.0, rng=None):
    """Return the milliseconds until the last rank has the sum.

    Args:
        name: The algorithm.
        num_ranks: Number of ranks.
        size: Size of the message in bytes.
        network: The network.
        jitter: Mean delay of each message in latencies; delays have an
            exponential distribution.
        rng: The generator of the delays; not needed without jitter.
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
    """Yield a row for each network, number of ranks and algorithm.

    Each compares the guard's message, with ``row_bytes`` of every rank, with
    the fastest all-reduce of the gradients.
    """
    rng = np.random.default_rng(seed)
    for network, num_ranks in product(networks, all_ranks):
        best = min(
            predict(name, num_ranks, GRADIENTS, network) for name in ALGORITHMS
        )
        for name, (find_steps, _) in ALGORITHMS.items():
            job = (name, num_ranks, num_ranks * row_bytes, network)
            late = [simulate(*job, jitter, rng) for _ in range(NUM_DRAWS)]
            senders = [step[0] for step in find_steps(*job[1:3])]
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
    """Draw time and share against ranks: lines simulated, marks measured."""
    from matplotlib.figure import Figure
    from save_figure import save_figure

    figure = Figure(figsize=(8, 5), layout='constrained')
    left, right = figure.subplots(1, 2)

    def plot(axes, table, key, style, label=None, **where):
        chosen = [row for row in table if where.items() <= row.items()]
        xs, ys = zip(*((row['ranks'], row[key]) for row in chosen))
        axes.plot(xs, ys, style, label=label)

    networks = sorted({row['network'] for row in rows})
    for color, network in zip(('C0', 'C1'), networks):
        for dashes, name in zip(('-', '--', ':'), ALGORITHMS):
            keys = dict(network=network, algorithm=name)
            style, label = color + dashes, f'{network}, {name}'
            plot(left, rows, 'ms', style, label, **keys)
            plot(left, rows, 'late_ms', color + 'x', **keys)
            plot(right, rows, 'percent', style, **keys)
        label = f'{network}, gradients'
        plot(left, rows, 'gradients_ms', color + '-.', label, **keys)
    plot(left, rows, 'host_ms', 'k-', 'Python', **keys)
    for mark, way in zip('os^', dict.fromkeys(r['sharing'] for r in measured)):
        keys = dict(sharing=way, span='update')
        plot(left, measured, 'more_ms', 'k' + mark, f'{way}, measured', **keys)
    ticks = sorted({row['ranks'] for row in [*rows, *measured]})
    for axes in (left, right):
        axes.set(xscale='log', yscale='log', xlabel='ranks')
        axes.set_xticks([], minor=True)
        axes.set_xticks(ticks, ticks)
    left.set_ylabel('milliseconds')
    right.set_ylabel("percent of the gradients' all-reduce")
    figure.legend(loc='outside lower center', ncols=4)
    save_figure(figure, path)
