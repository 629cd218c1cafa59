"""The figure that compares runs: their losses and metrics in one chart."""

from html import escape
from typing import Dict, List, Optional, Sequence

from .downsample import downsample_curve
from .event_traces import PlotlyObject
from .figure import axis_of, layout_of, stacked
from .panels import LOSS, PANELS, VALIDATION
from .read_scalars import VAL_PREFIX
from .run_report import RunReport
from .traces import curve_trace

__all__ = ['COLORS', 'draw_comparison']

# One color for each run, for light and dark pages (Tableau's).
COLORS = (
    *('#4e79a7', '#f28e2b', '#59a14f', '#e15759', '#b07aa1', '#76b7b2'),
    *('#d4a017', '#ff7f9c', '#9c755f', '#8a94a6'),
)
HEIGHT = 230  # pixels of a panel


def draw_comparison(
    reports: Sequence[RunReport], end: int, begin: int = 0
) -> Optional[PlotlyObject]:
    """Draw the loss and the metric of all runs; None if no run has any.

    Args:
        reports: The reports of the runs, in the order of their colors.
        end: The iteration at which the axis ends.
        begin: The iteration after which it begins.
    """
    from plotly.graph_objects import Figure

    keys = {LOSS: LOSS, VALIDATION: common_metric(reports)}
    traces: Dict[str, List[PlotlyObject]] = {}
    for panel, key in keys.items():
        drawn = traces_of_runs(reports, panel, key)
        if drawn:
            traces[panel] = drawn
    if not traces:
        return None
    # A click on the name of a run hides all its curves.
    for trace in traces[next(iter(traces))]:
        trace['showlegend'] = True
    panels, axes = {}, {}
    for panel, drawn in traces.items():
        panels[panel] = PANELS[panel]._replace(height=HEIGHT)
        axes[panel] = axis_of(panel, drawn)
    if VALIDATION in panels:
        title = escape(keys[VALIDATION][len(VAL_PREFIX) :])
        panels[VALIDATION] = panels[VALIDATION]._replace(title=title)
    layout = layout_of(panels, axes, end, begin=begin)
    # One label has the values of all runs at an iteration.
    layout['hovermode'] = 'x unified'
    # A line that is 1 pixel wide or more gets a white border.
    layout['xaxis'].update(spikethickness=-1, spikecolor='#98a2b3')
    figure: PlotlyObject = Figure(stacked(traces), layout).to_plotly_json()
    return figure


def common_metric(reports: Sequence[RunReport]) -> str:
    """Return the key of the metric that most runs have; '' without one."""
    counts: Dict[str, int] = {}
    for report in reports:
        for metric in report.metrics:
            counts[metric.name] = counts.get(metric.name, 0) + 1
    # The first one of equal counts is the most important of its run.
    name = max(counts, key=counts.__getitem__, default='')
    return f'{VAL_PREFIX}{name}' if name else ''


def traces_of_runs(
    reports: Sequence[RunReport], panel: str, key: str
) -> List[PlotlyObject]:
    """Return one scalar of all runs that have it, each in its color."""
    traces = []
    for number, report in enumerate(reports):
        curve = report.curves.get(key)
        if curve is None:
            continue
        points = downsample_curve(curve.iters, curve.values)
        if not any(value is not None for value in points[1]):
            continue
        trace = curve_trace(panel, report.name, points, 0)
        trace['line'].update(color=COLORS[number % len(COLORS)], width=2)
        trace['legendgroup'] = str(number)
        trace['hovertemplate'] = f'{trace["name"]} %{{y:.5g}}<extra></extra>'
        traces.append(trace)
    return traces
