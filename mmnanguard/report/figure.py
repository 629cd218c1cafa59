"""The figure of one run: panels over iterations, one below the other."""

import math
from itertools import chain
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence

from .panels import FOLLOWED, GRAD_NORM, LOSS_SCALE, LR, PANELS, REJECTED
from .run_report import RunReport
from .summary import Row
from .traces import MARKS, Trace, traces_of

__all__ = ['draw']

GAP = 14  # pixels between panels
WIDE = 30  # from lowest to highest, above which an axis is logarithmic
MAX_LINES = 40  # that mark where a run was resumed, halted, rolled back


def draw(report: RunReport, last_iter: Optional[int] = None) -> Dict[str, Any]:
    """Draw the figure of one run.

    Args:
        report: Of the run.
        last_iter: Where the axis ends; that of the run if None.

    Returns:
        ``data`` and ``layout`` as plotly.js takes them, checked by plotly.
        ``layout['meta']['panels']`` has the panel of each axis.
    """
    from plotly.graph_objects import Figure  # a report in text needs none

    end = last_iter or report.summary.last_iter
    panels = traces_of(report, end)
    layout = layout_of(panels, end)
    data = []
    for number, traces in enumerate(panels.values()):
        for trace in traces:
            data.append({**trace, 'xaxis': 'x', 'yaxis': axis_name(number)})
    layout['shapes'] = lines_of(report.summary.events)
    figure: Dict[str, Any] = Figure(data, layout).to_plotly_json()
    return figure


def lines_of(events: Sequence[Row]) -> List[Dict[str, Any]]:
    """Return lines through all panels: resumes, rollbacks, halts, audits."""
    marked = [
        row
        for row in events
        if row.get('kind') in ('rollback', 'halt', 'audit')
        or (row.get('kind') == 'start' and row.get('attempt') != 1)
    ]
    return [
        {
            'type': 'line',
            'xref': 'x',
            'yref': 'paper',
            'x0': row.get('iter'),
            'x1': row.get('iter'),
            'y0': 0,
            'y1': 1,
            'layer': 'below',
            'line': {
                'color': MARKS[str(row['kind'])][1],
                'width': 1,
                'dash': 'dot',
            },
        }
        for row in marked[:MAX_LINES]
    ]


def layout_of(panels: Mapping[str, List[Trace]], end: int) -> Dict[str, Any]:
    heights = {panel: PANELS[panel].height for panel in panels}
    total = sum(heights.values()) + GAP * (len(panels) - 1)
    layout: Dict[str, Any] = {
        'height': total + 90,
        'margin': {'l': 80, 'r': 16, 't': 40, 'b': 46},
        'barmode': 'stack',
        'bargap': 0,
        'dragmode': 'zoom',
        'modebar': {
            'bgcolor': 'rgba(0,0,0,0)',
            'color': '#98a2b3',
            'activecolor': '#3b7dd8',
        },
        'hovermode': 'closest',
        'legend': {'orientation': 'h', 'x': 0, 'y': 1, 'yanchor': 'bottom'},
        'paper_bgcolor': 'rgba(0,0,0,0)',
        'plot_bgcolor': 'rgba(0,0,0,0)',
        'xaxis': {
            'range': [0, end * 1.01 + 1],
            'title': {'text': 'iteration'},
            'anchor': axis_name(len(panels) - 1),
            'tickformat': ',d',
        },
    }
    top, panel_of_axis = total, {}
    for number, panel in enumerate(panels):
        bottom = top - heights[panel]
        key = axis_name(number).replace('y', 'yaxis')
        panel_of_axis[key] = panel
        layout[key] = {
            'domain': [max(bottom / total, 0), top / total],
            'anchor': 'x',
            'title': {'text': PANELS[panel].title, 'standoff': 8},
            **axis_of(panel, panels[panel]),
        }
        top = bottom - GAP
    layout['meta'] = {'panels': panel_of_axis}
    return layout


def axis_name(number: int) -> str:
    """Return plotly's name of the y axis of a panel, counted from 0."""
    return f'y{number + 1}' if number else 'y'


def axis_of(panel: str, traces: Sequence[Trace]) -> Dict[str, Any]:
    """Return how the values of a panel are drawn."""
    if panel == FOLLOWED:
        return {'type': 'category', 'showgrid': False, 'fixedrange': True}
    if panel == REJECTED:
        return {'rangemode': 'tozero', 'tickformat': ',d', 'nticks': 5}
    values = [y for y in values_of(traces) if y and y > 0]
    if panel == LOSS_SCALE and values:
        return {'type': 'log', **powers_of_2(min(values))}
    is_wide = bool(values) and max(values) > WIDE * min(values)
    if panel == GRAD_NORM and is_wide:
        return {'type': 'log', 'dtick': 1, 'exponentformat': 'power'}
    return {
        'nticks': 5,
        'exponentformat': 'power',
        'rangemode': rangemode_of(panel, traces),
    }


def values_of(traces: Sequence[Trace]) -> Iterator[Optional[float]]:
    """Return the values that are drawn; None is a gap."""
    return chain.from_iterable(trace['y'] for trace in traces)


def rangemode_of(panel: str, traces: Sequence[Trace]) -> str:
    """Return where an axis begins.

    By itself, plotly shows 1 on both sides of a constant.
    """
    values = {y for y in values_of(traces) if y is not None}
    if not values or min(values) < 0:
        return 'normal'
    is_flat = len(values) == 1
    return 'tozero' if is_flat or panel == LR else 'nonnegative'


def powers_of_2(lowest: float) -> Dict[str, Any]:
    """Return ticks at powers of 2, one of them at the lowest value.

    The page knows the range that is shown, so it sets how many powers lie
    between two ticks.
    """
    power = math.log10(2)
    return {
        'tick0': round(math.log2(lowest)) * power,
        'dtick': power,
        'tickformat': ',.7~g',
    }
