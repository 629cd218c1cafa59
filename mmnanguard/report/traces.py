"""The traces of each panel of a run's figure, as plotly.js takes them."""

from array import array
from bisect import bisect_right
from html import escape
from typing import Dict, List, Mapping, Sequence, Tuple

from mmnanguard.core.checks import is_finite_number

from .downsample import Points, downsample_curve
from .event_traces import (
    Trace,
    bars_of,
    is_marked,
    markers_of,
    marks_of,
    values_of,
)
from .panels import (
    FOLLOWED,
    GRAD_NORM,
    LOSS,
    LOSS_SCALE,
    LR,
    OF_SCALARS,
    PANELS,
    REJECTED,
    VALIDATION,
)
from .read_scalars import FACTOR, VAL_PREFIX, Curve, factor_of, panel_of
from .run_report import RunReport
from .summary import Row

__all__ = ['LINES', 'curve_trace', 'traces_of']

# Colors of the curves of a panel.
LINES = ('#3b7dd8', '#59a14f', '#9c755f', '#76b7b2', '#bab0ac', '#edc948')
MAX_METRICS = 8  # as there may be one for each class
# By panel, the key of the value that it shows in the row of an update.
FIELDS = {LOSS: 'loss', GRAD_NORM: 'grad_norm'}


def traces_of(
    report: RunReport, end: int, begin: int = 0
) -> Dict[str, List[Trace]]:
    """Return the traces by panel, top down, without empty panels.

    Args:
        report: The report of the run.
        end: The iteration at which the axis ends.
        begin: The iteration after which it begins.
    """
    updates = []
    for row in report.summary.events:
        if row.get('kind') == 'update' and row['iter'] is not None:
            updates.append(row)
    panels: Dict[str, List[Trace]] = {}
    for panel in OF_SCALARS:
        curves: Dict[str, Curve] = {}
        if panel == VALIDATION:
            panels[panel] = traces_of_metrics(report, begin, end)
            continue
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
    panels[REJECTED] = bars_of(report, end, begin)
    marked = list(filter(is_marked, report.summary.events))
    panels[FOLLOWED] = marks_of(marked)
    # A curve that is never finite would leave its panel empty.
    return {
        panel: traces for panel, traces in panels.items() if values_of(traces)
    }


def traces_of_metrics(report: RunReport, begin: int, end: int) -> List[Trace]:
    """Return the curves of the metrics, the most important one first."""
    traces = []
    for number, metric in enumerate(report.metrics[:MAX_METRICS]):
        curve = report.curves[f'{VAL_PREFIX}{metric.name}']
        points = downsample_curve(curve.iters, curve.values)
        trace = curve_trace(VALIDATION, metric.name, points, number)
        trace.update(mode='lines+markers', showlegend=True)
        traces.append(trace)
    best = report.metrics[:1]
    if best and best[0].best is not None:
        # Inside of the axis.
        is_late = (best[0].best_iter or 0) > (begin + end) / 2
        traces.append(
            {
                'type': 'scatter',
                'mode': 'markers+text',
                'x': [best[0].best_iter],
                'y': [best[0].best],
                'text': ['best'],
                'textposition': 'bottom left' if is_late else 'bottom right',
                'showlegend': False,
                'hoverinfo': 'skip',
                'marker': {'symbol': 'star', 'size': 12, 'color': LINES[0]},
            }
        )
    return traces


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
    # The reader can switch the parts of a loss, and metrics, on in the
    # legend.
    if panel in (LOSS, VALIDATION) and number:
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
