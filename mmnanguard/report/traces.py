"""The traces of each panel of a run's figure, as plotly.js takes them."""

from array import array
from bisect import bisect_right
from html import escape
from operator import itemgetter
from typing import (
    Any,
    Dict,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Sequence,
    Tuple,
)

from mmnanguard.core.causes import UNKNOWN, facts_of_cause
from mmnanguard.core.checks import is_finite_number
from mmnanguard.core.rows.json_numbers import parse_number

from .downsample import Points, count_by_bin, downsample_curve
from .panels import (
    FOLLOWED,
    GRAD_NORM,
    LOSS,
    LOSS_SCALE,
    LR,
    OF_SCALARS,
    PANELS,
    REJECTED,
)
from .parse_row import iter_of
from .read_scalars import FACTOR, Curve, factor_of, panel_of
from .run_report import RunReport
from .summary import Row

__all__ = ['LINES', 'MARKS', 'Mark', 'PlotlyObject', 'traces_of', 'values_of']

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


# Colors of the curves of a panel.
LINES = ('#3b7dd8', '#59a14f', '#9c755f', '#76b7b2', '#bab0ac', '#edc948')
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
# By panel, the key of the value that it shows in the row of an update.
FIELDS = {LOSS: 'loss', GRAD_NORM: 'grad_norm'}


def traces_of(report: RunReport, end: int) -> Dict[str, List[Trace]]:
    """Return the traces by panel, top down, without empty panels.

    Args:
        report: The report of the run.
        end: The iteration at which the axis ends.
    """
    updates = []
    for row in report.summary.events:
        if row.get('kind') == 'update' and row['iter'] is not None:
            updates.append(row)
    panels: Dict[str, List[Trace]] = {}
    for panel in OF_SCALARS:
        curves: Dict[str, Curve] = {}
        for key, curve in report.curves.items():
            # MMEngine writes the rate of the schedule, which does not know
            # the factor by which a guard lowers it.
            if panel_of(key) == LR == panel:
                name, rate = effective_rate(key, report.curves)
                curves[name] = rate
            elif panel_of(key) == panel:
                curves[key] = curve
        traces = curves_of(panel, curves, updates)
        if panel in FIELDS:
            traces += markers_of(FIELDS[panel], traces, updates)
        panels[panel] = traces
    panels[REJECTED] = bars_of(report, end)
    panels[FOLLOWED] = marks_of(report.summary.events)
    return {panel: traces for panel, traces in panels.items() if traces}


def values_of(traces: Iterable[Trace]) -> List[float]:
    """Return the values that traces draw, without gaps."""
    values = []
    for trace in traces:
        values += [value for value in trace['y'] if value is not None]
    return values


def curves_of(
    panel: str, curves: Mapping[str, Curve], updates: Sequence[Row]
) -> List[Trace]:
    """Return the curves of a panel.

    A learning rate without scalars is drawn from the rows of the updates. A
    single loss scale is drawn from its scalars together with these rows.
    """
    points: Dict[str, Points] = {}
    for key, curve in curves.items():
        points[key] = downsample_curve(curve.iters, curve.values)
    title = PANELS[panel].title
    # The scale changes at rejected updates, which may lie between two scalars.
    # With several scales, the rows of their optimizers would be mixed.
    if panel == LOSS_SCALE and len(points) < 2:
        key = next(iter(points), title)
        points = {key: merged(points.get(key, ([], [])), scales_of(updates))}
    if panel == LR and not points:
        points = {title: rates_of(updates)}
    # The loss comes before its parts.
    names = sorted(points, key=lambda key: (key != LOSS, key))
    traces = []
    for number, name in enumerate(names):
        if points[name][0]:
            trace = curve_trace(panel, name, points[name], number)
            # A learning rate with a factor differs from the rate in the log,
            # so the legend names it.
            trace['showlegend'] = name.endswith(FACTOR) or (
                panel == LOSS and len(names) > 1
            )
            traces.append(trace)
    return traces


def curve_trace(panel: str, name: str, points: Points, number: int) -> Trace:
    """Return one curve of a panel.

    Args:
        panel: The identifier of the panel.
        name: The key of the scalar.
        points: The points to draw, at least one.
        number: The number of the curve in its panel, from 0.
    """
    iters, values = points
    # A line through a single point cannot be seen.
    mode = 'lines' if len(iters) > 1 else 'lines+markers'
    visible: object = True
    # The reader can switch the parts of a loss on in the legend.
    if panel == LOSS and number:
        visible = 'legendonly'
    return {
        'type': 'scatter',
        'mode': mode,
        'x': iters,
        'y': values,
        # Plotly renders some HTML tags in texts, and a key may hold '<'.
        'name': escape(name),
        'showlegend': False,
        'visible': visible,
        'line': {
            'color': LINES[number % len(LINES)],
            'width': 1.5,
            # The scale stays constant until it changes at once.
            'shape': 'hv' if panel == LOSS_SCALE else 'linear',
        },
        'hovertemplate': f'iteration %{{x:,}}<br>{escape(name)} '
        '%{y:.5g}<extra></extra>',
    }


def effective_rate(key: str, curves: Mapping[str, Curve]) -> Tuple[str, Curve]:
    """Return name and curve of the rate that the optimizer stepped with.

    Args:
        key: The key of the scheduled rate.
        curves: All curves of the run, the guard's factors included.
    """
    rates, factors = curves[key], curves.get(factor_of(key))
    if factors is None:
        return key, rates
    used = array('d')
    for iter_, rate in zip(rates.iters, rates.values):
        # Factors may be written less often: the last known one applies.
        place = bisect_right(factors.iters, iter_)
        used.append(rate * (factors.values[place - 1] if place else 1.0))
    return f'{key} x {factor_of(key)}', Curve(rates.iters, used)


def scales_of(updates: Sequence[Row]) -> Points:
    """Return the loss scales after these updates."""
    iters, values = [], []
    for row in updates:
        # The value is null without a loss scale.
        scale, value = row.get('loss_scale'), None
        if isinstance(scale, Mapping):
            value = scale.get('after')
        if is_finite_number(value):
            iters.append(row['iter'])
            values.append(value)
    return iters, values


def rates_of(updates: Sequence[Row]) -> Points:
    """Return the learning rates of the first parameter group."""
    iters, values = [], []
    for row in updates:
        rates = row.get('lr') or (None,)
        if is_finite_number(rates[0]):
            iters.append(row['iter'])
            values.append(rates[0])
    return iters, values


def merged(points: Points, more: Points) -> Points:
    """Return the points of both curves; ``more`` wins at equal iterations."""
    value_at = dict(zip(*points))
    value_at.update(zip(*more))
    iters = sorted(value_at)
    return iters, list(map(value_at.__getitem__, iters))


def markers_of(
    field: str, curves: Sequence[Trace], updates: Sequence[Row]
) -> List[Trace]:
    """Return markers for the updates, one trace for each cause.

    A marker is drawn at the update's value. If the value is not finite, above
    the curve or far below it, the marker is drawn at the top of the curve.

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
    # A value somewhat below the curve is drawn where it is. A value far below
    # would flatten the curve.
    low -= top - low
    by_cause: Dict[str, List[Tuple[Row, float]]] = {}
    for row, value in zip(updates, values):
        if not (is_finite_number(value) and low <= value <= top):
            value = top
        by_cause.setdefault(str(row.get('cause')), []).append((row, value))
    traces = []
    for cause, markers in by_cause.items():
        marker = {
            'color': facts_of_cause(cause).color,
            'size': 8,
            'line': {'width': 1, 'color': 'rgba(255,255,255,0.7)'},
        }
        rows, heights = map(list, zip(*markers))
        trace = marker_trace(cause, rows, heights, marker)
        # A click on the cause in the legend hides its bars and markers.
        trace['legendgroup'] = escape(cause)
        traces.append(trace)
    return traces


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


def bars_of(report: RunReport, end: int) -> List[Trace]:
    """Return bars with the number of updates, one trace for each cause.

    Unlike markers, bars count all updates of the run.
    """
    # `-(-a // b)` rounds a / b up. All bins have the same whole number of
    # iterations, at least one.
    width = max(-(-end // NUM_BINS), 1)
    num_bins = -(-end // width) or 1
    middles, ranges = [], []
    for begin in range(1, num_bins * width + 1, width):
        middles.append(begin + width * 0.5 - 0.5)
        ranges.append(f'{begin:,} to {begin + width - 1:,}')
    traces = []
    # Sorted by name, so that the stacks of all runs have the same order.
    for cause, iters in sorted(report.summary.iters.items()):
        traces.append(
            {
                'type': 'bar',
                'x': middles,
                'y': count_by_bin(iters, 1, width, num_bins),
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
