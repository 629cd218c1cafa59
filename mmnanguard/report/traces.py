"""The traces of each panel of a run's figure, as plotly.js takes them."""

from array import array
from bisect import bisect_right
from html import escape
from typing import Any, Dict, List, Mapping, Sequence, Tuple

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
from .read_scalars import FACTOR, Curve, factor_of, panel_of
from .run_report import RunReport
from .summary import Row

__all__ = ['MARKS', 'Trace', 'traces_of']

OTHER = UNKNOWN.color
LINES = ('#3b7dd8', '#59a14f', '#9c755f', '#76b7b2', '#bab0ac', '#edc948')
MARKS = {
    'start': ('triangle-right', '#59a14f'),
    'input': ('square-open', '#8e5bd0'),
    'autopsy': ('circle-open', '#3b7dd8'),
    'dump': ('triangle-down-open', '#6c757d'),
    'remedy': ('cross', '#59a14f'),
    'audit': ('diamond', '#a4161a'),
    'rollback': ('triangle-left', '#f28e2b'),
    'halt': ('x', '#e15759'),
}
HUGE = 1e30  # no axis can show it beside others
NUM_BINS = 120
FIELDS = {LOSS: 'loss', GRAD_NORM: 'grad_norm'}  # of an update's row
Trace = Dict[str, Any]


def traces_of(report: RunReport, end: int) -> Dict[str, List[Trace]]:
    """Return the traces by panel, top down, without empty panels."""
    updates = [
        row
        for row in report.summary.events
        if row.get('kind') == 'update' and row['iter'] is not None
    ]
    panels: Dict[str, List[Trace]] = {}
    for panel in OF_SCALARS:
        curves = {
            key: curve
            for key, curve in report.curves.items()
            if panel_of(key) == panel
        }
        if panel == LR:
            curves = dict(used_rate(key, report.curves) for key in curves)
        traces = curves_of(panel, curves, updates)
        if panel in FIELDS:
            traces += markers_of(FIELDS[panel], traces, updates)
        panels[panel] = traces
    panels[REJECTED] = bars_of(report, end)
    panels[FOLLOWED] = marks_of(report.summary.events)
    return {panel: traces for panel, traces in panels.items() if traces}


def curves_of(
    panel: str, curves: Mapping[str, Curve], updates: Sequence[Row]
) -> List[Trace]:
    """The scalars; without any, learning rate and scale of the events."""
    points = {
        key: downsample_curve(curve.iters, curve.values)
        for key, curve in curves.items()
    }
    title = PANELS[panel].title
    if panel == LOSS_SCALE and len(points) < 2:
        key = next(iter(points), title)
        points = {key: merged(points.get(key, ([], [])), scales_of(updates))}
    if panel == LR and not points:
        points = {title: rates_of(updates)}
    names = sorted(points, key=lambda key: (key != LOSS, key))
    return [
        {
            'type': 'scatter',
            'mode': 'lines' if len(points[name][0]) > 1 else 'lines+markers',
            'x': points[name][0],
            'y': points[name][1],
            'name': escape(name),
            # Rates that are not those of the log say so.
            'showlegend': name.endswith(FACTOR)
            or (panel == LOSS and len(names) > 1),
            # The parts of a loss can be switched on.
            'visible': 'legendonly' if number and panel == LOSS else True,
            'line': {
                'color': LINES[number % len(LINES)],
                'width': 1.5,
                'shape': 'hv' if panel == LOSS_SCALE else 'linear',
            },
            'hovertemplate': f'iteration %{{x:,}}<br>{escape(name)} '
            '%{y:.5g}<extra></extra>',
        }
        for number, name in enumerate(names)
        if points[name][0]
    ]


def used_rate(key: str, curves: Mapping[str, Curve]) -> Tuple[str, Curve]:
    """Name and curve of what the optimizer stepped with. MMEngine writes the
    schedule's rate, which knows of no factor that a guard lowers it by.
    """
    rates, factors = curves[key], curves.get(factor_of(key))
    if factors is None:
        return key, rates
    used = array('d')
    for iter_, rate in zip(rates.iters, rates.values):
        place = bisect_right(factors.iters, iter_)  # the last one known
        used.append(rate * (factors.values[place - 1] if place else 1.0))
    return f'{key} x {factor_of(key)}', Curve(rates.iters, used)


def scales_of(updates: Sequence[Row]) -> Points:
    scales = [row.get('loss_scale') or {} for row in updates]
    return finite_ones(updates, [scale.get('after') for scale in scales])


def rates_of(updates: Sequence[Row]) -> Points:
    rates = [row.get('lr') or (None,) for row in updates]
    return finite_ones(updates, [rate[0] for rate in rates])


def finite_ones(updates: Sequence[Row], values: Sequence[Any]) -> Points:
    told = [
        (row['iter'], value)
        for row, value in zip(updates, values)
        if is_finite_number(value)
    ]
    return [iter_ for iter_, _ in told], [value for _, value in told]


def merged(points: Points, more: Points) -> Points:
    """The scalars come every few iterations, the events when they happen."""
    both = dict(zip(*points))
    both.update(zip(*more))
    iters = sorted(both)
    return iters, [both[iter_] for iter_ in iters]


def markers_of(
    field: str, curves: Sequence[Trace], updates: Sequence[Row]
) -> List[Trace]:
    """The updates at their value, or at the top of the curve if that is not
    finite or higher.
    """
    drawn = [y for trace in curves[:1] for y in trace['y'] if y is not None]
    values = [parse_number(row.get(field)) for row in updates]
    finite = [v for v in values if is_finite_number(v) and abs(v) < HUGE]
    if not drawn and not finite:
        return []
    low, top = min(drawn or finite), max(drawn or finite)
    low -= top - low
    by_cause: Dict[str, List[Tuple[Row, Any]]] = {}
    for row, value in zip(updates, values):
        is_inside = is_finite_number(value) and low <= value <= top
        y = value if is_inside else top
        by_cause.setdefault(str(row.get('cause')), []).append((row, y))
    return [
        {
            'type': 'scatter',
            'mode': 'markers',
            'x': [row['iter'] for row, _ in rows],
            'y': [y for _, y in rows],
            'customdata': [row['place'] for row, _ in rows],
            'name': escape(cause),
            'legendgroup': escape(cause),
            'showlegend': False,
            'marker': {
                'color': facts_of_cause(cause).color,
                'size': 8,
                'line': {'width': 1, 'color': 'rgba(255,255,255,0.7)'},
            },
            'hovertemplate': '%{text}<extra></extra>',
        }
        for cause, rows in by_cause.items()
    ]


def bars_of(report: RunReport, end: int) -> List[Trace]:
    """All updates, counted."""
    width = max(-(-end // NUM_BINS), 1)
    num_bins = -(-end // width) or 1
    middles = [1 + width * (number + 0.5) - 0.5 for number in range(num_bins)]
    return [
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
            'customdata': [
                f'{1 + width * number:,} to {width * (number + 1):,}'
                for number in range(num_bins)
            ],
            'hovertemplate': 'iterations %{customdata}<br>'
            f'%{{y:,}} x {escape(cause)}<extra></extra>',
        }
        for cause, iters in sorted(report.summary.iters.items())
    ]


def marks_of(events: Sequence[Row]) -> List[Trace]:
    """What other rows tell, a line for each kind."""
    by_kind: Dict[str, List[Row]] = {}
    for row in events:
        if row.get('kind') != 'update' and row.get('iter') is not None:
            by_kind.setdefault(str(row.get('kind')), []).append(row)
    order = [*MARKS, *by_kind]
    return [
        {
            'type': 'scatter',
            'mode': 'markers',
            'x': [row['iter'] for row in by_kind[kind]],
            'y': [escape(kind)] * len(by_kind[kind]),
            'customdata': [row['place'] for row in by_kind[kind]],
            'name': escape(kind),
            'showlegend': False,
            'marker': {
                'symbol': MARKS.get(kind, ('circle', OTHER))[0],
                'color': MARKS.get(kind, ('circle', OTHER))[1],
                'size': 9,
            },
            'hovertemplate': '%{text}<extra></extra>',
        }
        for kind in sorted(by_kind, key=order.index, reverse=True)
    ]
