"""The figure of a run's samples: headroom, outputs, updates, logits."""

import math
from html import escape
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from mmnanguard.core.rows import alert_row
from mmnanguard.core.rows.alert_row import AlertRow, percent

from .alerts import BAD_LOSS, Alert, alerts_of, first_after
from .downsample import Points, downsample_curve
from .event_traces import MARKS, PlotlyObject, values_of
from .figure import layout_of, lines_of, stacked
from .heatmap import ROOM, draw_heatmap, short_name
from .margins_line import FLOAT16
from .panels import HEADROOM, LOGITS, OUTPUTS, STABILITY_PANELS, UPDATE_RATIO
from .read_samples import Samples
from .read_scalars import Curve
from .run_report import RunReport
from .traces import LINES

__all__ = ['draw_stability']

MAX_MODULES = 3  # curves of outputs
MAX_TOLD = 20  # countdowns and lines of alerts
MAX_MARKERS = 100  # points of a curve that are drawn one by one
MAX_DOUBLES = 1e9  # iterations; odd rows have more
WIDE = 30  # see figure.WIDE
GAP = 28  # pixels between panels, with room for a legend
COLORBAR = 130  # pixels
LIMIT_COLOR = '#e15759'
TOLD_COLOR = '#f28e2b'
REJECTED_COLOR = '#c2188b'  # seen on all colors of the heatmap


def draw_stability(
    report: RunReport, last_iter: Optional[int] = None, begin: int = 0
) -> Optional[PlotlyObject]:
    """Draw the samples of a run; None if there are none.

    Args:
        report: The report of the run.
        last_iter: The iteration at which the axis ends; None means the run's
            last iteration.
        begin: The iteration after which the axis begins.

    Returns:
        The ``data`` and ``layout`` for plotly.js, as those of the figure of
        curves and events.
    """
    samples = report.samples
    if not samples:
        return None
    from plotly.graph_objects import Figure

    end = last_iter or report.summary.last_iter
    alerts = alerts_of(report.summary)
    traces: Dict[str, List[PlotlyObject]] = {}
    axes: Dict[str, PlotlyObject] = {}
    panels = dict(STABILITY_PANELS)
    heatmap = draw_heatmap(samples, end)
    if heatmap is not None:
        traces[HEADROOM] = heatmap.traces
        axes[HEADROOM] = axis_of_modules(heatmap.modules)
        panel = panels[HEADROOM]
        height = panel.height * max(len(heatmap.modules), 5)
        panels[HEADROOM] = panel._replace(height=height)
        shown = modules_to_draw(alerts, heatmap.modules)
        traces[OUTPUTS] = traces_of_outputs(samples, shown, alerts, end)
        axes[OUTPUTS] = log_axis()
    for name, rule in (
        (UPDATE_RATIO, alert_row.UPDATE_RATIO),
        (LOGITS, alert_row.ATTENTION_LOGITS),
    ):
        curve = samples.numbers.get(name)
        if curve is not None:
            traces[name] = traces_of_number(name, curve, rule, alerts, end)
            axes[name] = axis_of_number(name, traces[name])
    if not traces:
        return None
    panels = {name: panels[name] for name in traces}
    layout = layout_of(panels, axes, end, GAP, begin)
    layout['margin'].update(t=60, r=70)
    layout['shapes'] = lines_of(report.summary.events)
    add_lines(layout, report, alerts)
    add_legends(layout, traces)
    figure: PlotlyObject = Figure(stacked(traces), layout).to_plotly_json()
    return figure


def axis_of_modules(modules: Sequence[str]) -> PlotlyObject:
    """Return the axis of the heatmap, with the worst module at the top."""
    return {
        'type': 'category',
        # Two long names may have the same end, so that the axis needs the
        # whole names.
        'tickvals': list(map(escape, modules)),
        'ticktext': [escape(short_name(module)) for module in modules],
        'tickfont': {'size': 11},
        'autorange': 'reversed',
        'automargin': True,
        'showgrid': False,
        'fixedrange': True,
    }


def log_axis() -> PlotlyObject:
    """Return a logarithmic axis."""
    return {'type': 'log', 'dtick': 1, 'exponentformat': 'power'}


def axis_of_number(name: str, traces: Sequence[PlotlyObject]) -> PlotlyObject:
    """Return the axis of a number of the whole model."""
    values = values_of(traces)
    if values and min(values) > 0 and max(values) > WIDE * min(values):
        axis = log_axis()
    else:
        axis = {'nticks': 5, 'rangemode': 'tozero'}
    if name == UPDATE_RATIO:
        axis['tickformat'] = '~%'
    return axis


def modules_to_draw(
    alerts: Sequence[Alert], modules: Sequence[str]
) -> List[str]:
    """Return the modules whose outputs are drawn, the worst one first.

    Args:
        alerts: The alerts of the run.
        modules: The modules of the heatmap, the worst first.
    """
    named = [modules[0]]
    for alert in alerts:
        if alert.record.rule == alert_row.HEADROOM:
            named.append(alert.record.module)
    return list(dict.fromkeys(named))[:MAX_MODULES]


def traces_of_outputs(
    samples: Samples, modules: Sequence[str], alerts: Sequence[Alert], end: int
) -> List[PlotlyObject]:
    """Return the largest outputs of modules, and what was told of them."""
    traces = []
    for number, module in enumerate(modules):
        points: List[Tuple[int, float]] = []
        for curves in (samples.half, samples.wide):
            curve = curves.get(module, Curve())
            points += zip(curve.iters, curve.values)
        points.sort()
        iters = [iter_ for iter_, _ in points]
        drawn = downsample_curve(iters, [value for _, value in points])
        traces.append(line(f"'{short_name(module)}'", drawn, LINES[number]))
    for alert in alerts[:MAX_TOLD]:
        record = alert.record
        if is_countdown(record) and record.module in modules:
            is_first = len(traces) == len(modules)
            traces.append(countdown(record, is_first))
    if any(module in samples.half for module in modules):
        name = f'{FLOAT16:.0f}'
        traces.append(limit_line(name, FLOAT16, end))
    return traces


def is_countdown(record: AlertRow) -> bool:
    """Whether an alert tells when outputs overflow."""
    return (
        record.rule == alert_row.HEADROOM
        and record.doubles is not None
        and 0 < record.doubles < MAX_DOUBLES
        and 0 < record.value < record.limit < math.inf
    )


def countdown(record: AlertRow, is_first: bool) -> PlotlyObject:
    """Return the dashed line from an alert to the overflow that it told."""
    doubles = record.doubles or math.nan
    left = doubles * (math.log2(record.limit) - math.log2(record.value))
    points: Points = (
        [record.iter, round(record.iter + left)],
        [record.value, record.limit],
    )
    trace = line('countdown as told', points, TOLD_COLOR)
    trace['mode'] = 'lines'
    trace['line']['dash'] = 'dash'
    trace['legendgroup'] = 'told'
    trace['showlegend'] = is_first
    trace['hovertemplate'] = (
        f'told at iteration {record.iter:,}: {escape(record.module)} doubles '
        f'every {doubles:.3g} iterations,<br>overflows in about {left:.0f}'
        '<extra></extra>'
    )
    return trace


def traces_of_number(
    name: str, curve: Curve, rule: str, alerts: Sequence[Alert], end: int
) -> List[PlotlyObject]:
    """Return a number of the whole model, and the limits of its alerts."""
    points = downsample_curve(curve.iters, curve.values)
    title = STABILITY_PANELS[name].title
    trace = line(title, points, LINES[0])
    trace['showlegend'] = False
    traces = [trace]
    limits: Dict[float, AlertRow] = {}
    for alert in alerts:
        limit = alert.record.limit
        if alert.record.rule == rule and 0 < limit < math.inf:
            limits.setdefault(limit, alert.record)
    for limit, record in limits.items():
        words = percent(limit) if name == UPDATE_RATIO else f'{limit:g}'
        words = f'limit {words}, passed at iteration {record.iter:,}'
        traces.append(limit_line(words, limit, end))
    return traces


def line(name: str, points: Points, color: str) -> PlotlyObject:
    """Return a curve of a panel."""
    mode = 'lines+markers' if len(points[0]) <= MAX_MARKERS else 'lines'
    return {
        'type': 'scatter',
        'mode': mode,
        'x': points[0],
        'y': points[1],
        'name': escape(name),
        'line': {'color': color, 'width': 1.5},
        'marker': {'size': 4},
        'hovertemplate': f'iteration %{{x:,}}<br>{escape(name)} '
        '%{y:.4g}<extra></extra>',
    }


def limit_line(name: str, limit: float, end: int) -> PlotlyObject:
    """Return a horizontal line at a limit."""
    trace = line(name, ([0, end], [limit, limit]), LIMIT_COLOR)
    trace.update(mode='lines', hoverinfo='skip', hovertemplate=None)
    return trace


def add_lines(
    layout: PlotlyObject, report: RunReport, alerts: Sequence[Alert]
) -> None:
    """Mark alerts, the first rejected update, and the first bad loss."""
    begins = [alert.record.iter for alert in alerts]
    marks = [(iter_, 'alert', 'dot') for iter_ in begins]
    begin = begins[0] if begins else 0
    rejected = report.summary.rejected
    firsts = [first_after(iters, begin) for iters in rejected.values()]
    first = min((it for it in firsts if it is not None), default=None)
    bad_loss = first_after(rejected.get(BAD_LOSS, ()), begin)
    marks = marks[:MAX_TOLD]
    if first is not None and first != bad_loss:
        marks.append((first, 'rejected', 'dash'))
    if bad_loss is not None:
        marks.append((bad_loss, 'loss not finite', 'solid'))
    layout['annotations'] = []
    named: List[str] = []
    for iter_, words, dash in marks:
        color = MARKS['alert'].color if words == 'alert' else REJECTED_COLOR
        vertical = {'xref': 'x', 'yref': 'paper', 'x0': iter_, 'x1': iter_}
        style = {'color': color, 'width': 1.5, 'dash': dash}
        layout['shapes'].append(
            {'type': 'line', **vertical, 'y0': 0, 'y1': 1, 'line': style}
        )
        if words in named:
            continue
        # The words of lines that are near each other must not overlap.
        height = 12 * len(named)
        named.append(words)
        layout['annotations'].append(
            {
                'xref': 'x',
                'yref': 'paper',
                'x': iter_,
                'y': 1,
                'yanchor': 'bottom',
                'yshift': height,
                'text': words,
                'font': {'size': 11, 'color': color},
                'showarrow': False,
            }
        )


def add_legends(
    layout: PlotlyObject, traces: Mapping[str, List[PlotlyObject]]
) -> None:
    """Give each panel a legend of its own, and the heatmap its colors."""
    for number, (key, panel) in enumerate(layout['meta']['panels'].items(), 1):
        _, top = layout[key]['domain']
        if panel == HEADROOM:
            traces[panel][0]['colorbar'] = {
                'title': {'text': 'bits', 'side': 'top'},
                'thickness': 10,
                'lenmode': 'pixels',
                'len': COLORBAR,
                'y': top,
                'yanchor': 'top',
                'tickvals': list(range(0, ROOM + 1, 4)),
            }
            continue
        name = f'legend{number}'
        layout[name] = {
            **layout['legend'],
            'y': top,
            'font': {'size': 11},
            'bgcolor': 'rgba(0,0,0,0)',
        }
        for trace in traces[panel]:
            trace['legend'] = name
