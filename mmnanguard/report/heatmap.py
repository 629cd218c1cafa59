"""The heatmap of headroom: modules by iterations."""

import math
from html import escape
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence

from .event_traces import PlotlyObject
from .margins_line import bits_below
from .read_samples import Samples
from .read_scalars import Curve

__all__ = ['ROOM', 'Heatmap', 'draw_heatmap', 'short_name']

MAX_ROWS = 40
MAX_COLUMNS = 200  # columns of a few pixels each on a page of 1,240
ROOM = 12  # bits from which a module has room enough
MAX_NAME = 24  # characters of a module's name beside the axis
# From dark to light as well as from red to green, because many readers cannot
# tell red from green.
COLORS = ('#a50026', '#e8542f', '#fdc05f', '#d9e98a', '#7ac17a')


class Column(NamedTuple):
    """A column of the heatmap.

    Attributes:
        iter: The iteration in its middle.
        begin: Where it begins on the axis.
        end: Where it ends on the axis.
    """

    iter: int
    begin: float
    end: float


class Heatmap(NamedTuple):
    """The traces of the heatmap, and its modules.

    Attributes:
        traces: The cells, and the hatching of those that are not float16.
        modules: The names of the modules, the worst first.
    """

    traces: List[PlotlyObject]
    modules: List[str]


def draw_heatmap(samples: Samples, end: int) -> Optional[Heatmap]:
    """Return the heatmap of a run; None if no module was measured.

    Args:
        samples: The samples of the run.
        end: The iteration at which the axis ends.
    """
    modules = worst_modules(samples)[:MAX_ROWS]
    if not modules:
        return None
    # Samples of the same column are merged: the worst one counts.
    width = max(-(-end // MAX_COLUMNS), 1)
    columns = columns_of(samples.iters, width)
    rows: List[List[Optional[float]]] = []
    bars: Dict[str, List[object]] = {'y': [], 'base': [], 'x': []}
    for module in modules:
        half = by_column(samples.half.get(module), width)
        wide = by_column(samples.wide.get(module), width)
        rows.append([])
        for number, column in columns.items():
            bits = half.get(number, wide.get(number))
            if bits is not None:
                bits = round(bits, 1)
            rows[-1].append(bits)
            # Within a column that has both, float16 is what can overflow.
            if number in wide and number not in half:
                add_bar(bars, module, column)
    names = list(map(escape, modules))
    cells = {
        'type': 'heatmap',
        'x': [column.iter for column in columns.values()],
        'y': names,
        'z': rows,
        'zmin': 0,
        'zmax': ROOM,
        'colorscale': list(zip((0, 0.25, 0.5, 0.75, 1), COLORS)),
        'ygap': 1,
        'hovertemplate': 'iteration %{x:,}<br>%{y}<br>%{z:.1f} bits below '
        '65504<extra></extra>',
    }
    hatching = {
        'type': 'bar',
        'orientation': 'h',
        'name': 'not float16',
        **bars,
        'width': 1,
        'hoverinfo': 'skip',
        'showlegend': False,
        'marker': {
            'color': 'rgba(0,0,0,0)',
            'line': {'width': 0},
            'pattern': {
                'shape': '/',
                'fgcolor': 'rgba(60,60,60,0.55)',
                'size': 7,
                'solidity': 0.2,
            },
        },
    }
    return Heatmap([cells] + [hatching] * bool(bars['y']), modules)


def worst_modules(samples: Samples) -> List[str]:
    """Return all modules, those with the least headroom first.

    Modules that have never run in float16 come after all that have.
    """
    least = {}
    for module in {**samples.half, **samples.wide}:
        least[module] = (
            least_bits(samples.half.get(module)),
            least_bits(samples.wide.get(module)),
        )
    return sorted(least, key=least.__getitem__)


def least_bits(curve: Optional[Curve]) -> float:
    """Return the least headroom of a curve; inf without one."""
    return math.inf if curve is None else bits_below(max(curve.values))


def columns_of(iters: Sequence[int], width: int) -> Dict[int, Column]:
    """Return the columns that have samples, by number.

    A column reaches to the middle between its first sample and the first
    sample of the next one.

    Args:
        iters: The iterations of the samples, in rising order.
        width: The number of iterations in a column, if each had a sample.
    """
    firsts: Dict[int, int] = {}
    for iter_ in iters:
        firsts.setdefault(iter_ // width, iter_)
    middles = list(firsts.values())
    distances = [after - before for before, after in zip(middles, middles[1:])]
    distances = distances or [1]
    columns = {}
    for number, iter_, before, after in zip(
        firsts, middles, distances[:1] + distances, distances + distances[-1:]
    ):
        columns[number] = Column(iter_, iter_ - before / 2, iter_ + after / 2)
    return columns


def by_column(curve: Optional[Curve], width: int) -> Mapping[int, float]:
    """Return the least headroom of a module in each column, in bits."""
    least: Dict[int, float] = {}
    if curve is not None:
        for iter_, largest in zip(curve.iters, curve.values):
            number, bits = iter_ // width, bits_below(largest)
            least[number] = min(bits, least.get(number, bits))
    return least


def add_bar(
    bars: Dict[str, List[object]], module: str, column: Column
) -> None:
    """Hatch a cell; neighbours in a row become one bar."""
    name = escape(module)
    bases, lengths = bars['base'], bars['x']
    if bars['y'] and bars['y'][-1] == name:
        base, length = float(str(bases[-1])), float(str(lengths[-1]))
        if base + length == column.begin:
            lengths[-1] = column.end - base
            return
    bars['y'].append(name)
    bases.append(column.begin)
    lengths.append(column.end - column.begin)


def short_name(module: str) -> str:
    """Return the end of a module's name, at a dot if possible."""
    if len(module) <= MAX_NAME:
        return module
    end = module[1 - MAX_NAME :]
    _, _, parts = end.partition('.')
    return f'\u2026{parts or end}'
