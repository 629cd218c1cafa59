"""The traces of rows: markers and bars of updates, marks of other rows."""

from functools import partial
from html import escape
from operator import itemgetter
from typing import Any, Dict, Iterable, List, NamedTuple, Sequence, Tuple

from mmnanguard.core.causes import UNKNOWN, facts_of_cause
from mmnanguard.core.checks import is_finite_number
from mmnanguard.core.rows.end_row import FINISHED, EndRow
from mmnanguard.core.rows.json_numbers import parse_number

from .downsample import count_by_bin
from .parse_row import iter_of
from .run_report import RunReport
from .summary import Row

__all__ = [
    'MARKS',
    'Mark',
    'PlotlyObject',
    'Trace',
    'bars_of',
    'is_marked',
    'markers_of',
    'marks_of',
    'values_of',
]

# Any: plotly itself checks the dicts, and has no types for them.
PlotlyObject = Dict[str, Any]
Trace = PlotlyObject


class Mark(NamedTuple):
    """The marker of a kind of rows.

    Attributes:
        symbol: Plotly's name of the marker.
        color: CSS color of the marker.
    """

    symbol: str
    color: str


# The marks by kind of row, in the order of their lines in the panel, top down.
MARKS = {
    'start': Mark('triangle-right', '#59a14f'),
    'input': Mark('square-open', '#8e5bd0'),
    'autopsy': Mark('circle-open', '#3b7dd8'),
    'dump': Mark('triangle-down-open', '#6c757d'),
    'remedy': Mark('cross', '#59a14f'),
    'alert': Mark('triangle-up', '#c98a00'),
    'audit': Mark('diamond', '#a4161a'),
    'rollback': Mark('triangle-left', '#f28e2b'),
    'halt': Mark('x', '#e15759'),
}
OTHER_MARK = Mark('circle', UNKNOWN.color)
HUGE = 1e30  # beside this value, an axis shows all others as 0
NUM_BINS = 120  # bars of a few pixels each on a page of 1,240


def is_marked(row: Row) -> bool:
    """Whether a mark says more than that the run began or finished."""
    kind = row.get('kind')
    if kind == 'start':
        return row.get('attempt') != 1
    return kind != EndRow.KIND or row.get('how') != FINISHED


def values_of(traces: Iterable[Trace]) -> List[float]:
    """Return the values that traces draw, without gaps."""
    values = []
    for trace in traces:
        values += [value for value in trace['y'] if value is not None]
    return values


def markers_of(
    field: str, curves: Sequence[Trace], updates: Sequence[Row]
) -> List[Trace]:
    """Return markers for the updates, one trace for each cause.

    A dot is drawn at the update's value. If the value is not finite, or far
    outside of the curve, a triangle is drawn at the top.

    Args:
        field: The key of the value in the rows.
        curves: The curves of the panel; the first decides what is outside.
        updates: The rows of the updates.
    """
    values = [parse_number(row.get(field)) for row in updates]
    # Without a curve, the updates themselves decide how high the axis is.
    drawn = values_of(curves[:1]) or list(filter(is_drawable, values))
    if not drawn:
        return []
    low, top = min(drawn), max(drawn)
    # A value somewhat outside of the curve is drawn where it is. One that is
    # far outside would flatten the curve.
    height = top - low
    is_shown = partial(is_between, low - height, top + 2 * height)
    top = max([top, *filter(is_shown, values)])
    by_cause: Dict[str, List[Tuple[Row, float, str]]] = {}
    for row, value in zip(updates, values):
        symbol = 'circle'
        if not is_shown(value):
            value, symbol = top, 'triangle-up'
        by_cause.setdefault(str(row.get('cause')), []).append(
            (row, value, symbol)
        )
    traces = []
    for cause, markers in by_cause.items():
        rows, heights, symbols = map(list, zip(*markers))
        marker = {
            'color': facts_of_cause(cause).color,
            'symbol': symbols,
            'size': 8,
            'line': {'width': 1, 'color': 'rgba(255,255,255,0.7)'},
        }
        trace = marker_trace(cause, rows, heights, marker)
        # A click on the cause in the legend hides its bars and markers.
        trace['legendgroup'] = escape(cause)
        traces.append(trace)
    return traces


def is_between(low: float, high: float, value: Any) -> bool:
    """Whether a value is a finite number in a range, limits included."""
    return is_finite_number(value) and low <= value <= high


def is_drawable(value: Any) -> bool:
    """Whether an axis that shows the value can show others, too."""
    return is_finite_number(value) and abs(value) < HUGE


def marker_trace(
    name: str,
    rows: Sequence[Row],
    heights: Sequence[object],
    marker: PlotlyObject,
) -> Trace:
    """Return markers for rows.

    Args:
        name: The cause or kind of the rows.
        rows: The rows.
        heights: The values of the rows on the vertical axis.
        marker: The looks of the markers.
    """
    return {
        'type': 'scatter',
        'mode': 'markers',
        'x': list(map(iter_of, rows)),
        'y': heights,
        # The page sets the texts: it has the rows, so that the figure need
        # not hold them as well.
        'customdata': list(map(itemgetter('place'), rows)),
        'name': escape(name),
        'showlegend': False,
        'marker': marker,
        'hovertemplate': '%{text}<extra></extra>',
    }


def bars_of(report: RunReport, end: int, begin: int) -> List[Trace]:
    """Return bars with the number of updates, one trace for each cause.

    Unlike markers, bars count all updates of the run.
    """
    # `-(-a // b)` rounds a / b up. All bins have the same whole number of
    # iterations, at least one.
    length, first = end - begin, begin + 1
    width = max(-(-length // NUM_BINS), 1)
    num_bins = -(-length // width) or 1
    middles, ranges = [], []
    for low in range(first, first + num_bins * width, width):
        middles.append(low + width * 0.5 - 0.5)
        # The run may end within the last bin.
        ranges.append(f'{low:,} to {min(low + width - 1, max(end, low)):,}')
    traces = []
    # Sorted by name, so that the stacks of all runs have the same order.
    for cause, iters in sorted(report.summary.iters.items()):
        traces.append(
            {
                'type': 'bar',
                'x': middles,
                'y': count_by_bin(iters, first, width, num_bins),
                'width': width,
                'name': f'{escape(cause)} ({len(iters):,})',
                'legendgroup': escape(cause),
                'marker': {
                    'color': facts_of_cause(cause).color,
                    'line': {'width': 0},
                },
                'customdata': ranges,
                'hovertemplate': 'iterations %{customdata}<br>'
                f'%{{y:,}} x {escape(cause)}<extra></extra>',
            }
        )
    return traces


def marks_of(events: Sequence[Row]) -> List[Trace]:
    """Return marks for all rows but updates, one line for each kind."""
    by_kind: Dict[str, List[Row]] = {}
    for row in events:
        if row.get('kind') != 'update' and row.get('iter') is not None:
            by_kind.setdefault(str(row.get('kind')), []).append(row)
    # Kinds of another version come last.
    order = [*MARKS, *by_kind]
    traces = []
    # Plotly draws the first category at the bottom.
    for kind in sorted(by_kind, key=order.index, reverse=True):
        rows = by_kind[kind]
        symbol, color = MARKS.get(kind, OTHER_MARK)
        marker = {'symbol': symbol, 'color': color, 'size': 9}
        heights = [escape(kind)] * len(rows)
        traces.append(marker_trace(kind, rows, heights, marker))
    return traces
