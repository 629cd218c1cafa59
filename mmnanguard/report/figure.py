"""The figure of one run: panels over iterations, one below the other."""

import math
from typing import List, Mapping, Optional, Sequence

from .event_traces import MARKS, PlotlyObject, values_of
from .panels import (
    FOLLOWED,
    GRAD_NORM,
    LOSS_SCALE,
    LR,
    PANELS,
    REJECTED,
    Panel,
)
from .run_report import RunReport
from .summary import Row
from .traces import traces_of

__all__ = ['draw', 'layout_of', 'lines_of', 'stacked']

GAP = 14  # pixels between panels
BORDER = 90  # pixels above and below all panels, for legend and axis
# The ratio of highest to lowest value above which an axis is logarithmic.
WIDE = 30
# Most lines through all panels; more lines would hide the curves.
MAX_LINES = 40
LINE_KINDS = ('rollback', 'halt', 'audit')


def draw(
    report: RunReport, last_iter: Optional[int] = None, begin: int = 0
) -> Optional[PlotlyObject]:
    """Draw the figure of one run; None if there is nothing to draw.

    Args:
        report: The report of the run.
        last_iter: The iteration at which the axis ends; None means the run's
            last iteration.
        begin: The iteration after which the axis begins.

    Returns:
        The ``data`` and ``layout`` for plotly.js, validated by plotly.
        ``layout['meta']['panels']`` maps vertical axes to panel identifiers.
    """
    # Imported here because a report in text needs no plotly.
    from plotly.graph_objects import Figure

    end = last_iter or report.summary.last_iter
    traces = traces_of(report, end, begin)
    if not traces:
        return None
    panels, axes = {}, {}
    for panel in traces:
        panels[panel] = PANELS[panel]
        axes[panel] = axis_of(panel, traces[panel])
    layout = layout_of(panels, axes, end, begin=begin)
    layout['shapes'] = lines_of(report.summary.events)
    # `Figure` raises ValueError for names and values that plotly.js would
    # silently ignore.
    data = stacked(traces)
    figure: PlotlyObject = Figure(data, layout).to_plotly_json()
    return figure


def stacked(panels: Mapping[str, List[PlotlyObject]]) -> List[PlotlyObject]:
    """Return the traces of all panels, top down, with their axes."""
    data = []
    for number, traces in enumerate(panels.values()):
        for trace in traces:
            data.append({**trace, 'xaxis': 'x', 'yaxis': axis_name(number)})
    return data


def lines_of(events: Sequence[Row]) -> List[PlotlyObject]:
    """Return vertical lines at resumes, rollbacks, halts and bad audits."""
    lines = []
    for row in filter(has_line, events):
        color = MARKS[str(row['kind'])].color
        lines.append(
            {
                'type': 'line',
                'xref': 'x',
                # With 'paper', all panels together reach from 0 to 1.
                'yref': 'paper',
                'x0': row.get('iter'),
                'x1': row.get('iter'),
                'y0': 0,
                'y1': 1,
                'layer': 'below',
                'line': {'color': color, 'width': 1, 'dash': 'dot'},
            }
        )
    return lines[:MAX_LINES]


def has_line(row: Row) -> bool:
    """Whether a line through all panels marks the row."""
    # The first attempt needs no line: it begins where the axis does.
    is_resume = row.get('kind') == 'start' and row.get('attempt') != 1
    return is_resume or row.get('kind') in LINE_KINDS


def layout_of(
    panels: Mapping[str, Panel],
    axes: Mapping[str, PlotlyObject],
    end: int,
    gap: int = GAP,
    begin: int = 0,
) -> PlotlyObject:
    """Return the layout of a figure.

    Args:
        panels: The panels by identifier, top down.
        axes: Type, range and ticks of their vertical axes.
        end: The iteration at which the axis of iterations ends.
        gap: The number of pixels between two panels.
        begin: The iteration after which the axis begins.
    """
    heights = {name: panel.height for name, panel in panels.items()}
    total = sum(heights.values()) + gap * (len(panels) - 1)
    layout = base_layout(total, axis_name(len(panels) - 1))
    panel_of_axis = {}
    top = total
    for number, panel in enumerate(panels):
        bottom = top - heights[panel]
        key = axis_name(number).replace('y', 'yaxis')
        panel_of_axis[key] = panel
        layout[key] = {
            # Rounding may give a little less than 0, which plotly refuses.
            'domain': [max(bottom / total, 0), top / total],
            'anchor': 'x',
            'title': {'text': panels[panel].title, 'standoff': 8},
            **axes[panel],
        }
        top = bottom - gap
    # The margin on the right keeps the last mark from being cut.
    layout['xaxis']['range'] = [begin, end + 0.01 * (end - begin) + 1]
    # The page needs this map: runs may have different panels, so the name
    # of an axis does not tell its panel.
    layout['meta'] = {'panels': panel_of_axis}
    return layout


def base_layout(total: int, lowest_axis: str) -> PlotlyObject:
    """Return the part of the layout that all panels share.

    Args:
        total: The height of all panels in pixels.
        lowest_axis: The vertical axis below which the iterations are shown.
    """
    return {
        'height': total + BORDER,
        'margin': {'l': 80, 'r': 24, 't': 40, 'b': 46},
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
        # Transparent: the page has a light and a dark color scheme.
        'paper_bgcolor': 'rgba(0,0,0,0)',
        'plot_bgcolor': 'rgba(0,0,0,0)',
        'xaxis': {
            'title': {'text': 'iteration'},
            'anchor': lowest_axis,
            'tickformat': ',d',
        },
    }


def axis_name(number: int) -> str:
    """Return plotly's name of a panel's vertical axis, counted from 0."""
    # The first axis is 'y', the second 'y2'.
    return f'y{number + 1}' if number else 'y'


def axis_of(panel: str, traces: Sequence[PlotlyObject]) -> PlotlyObject:
    """Return type, range and ticks of a panel's vertical axis."""
    if panel == FOLLOWED:
        return {'type': 'category', 'showgrid': False, 'fixedrange': True}
    if panel == REJECTED:
        return {'rangemode': 'tozero', 'tickformat': ',d', 'nticks': 5}
    values = values_of(traces)
    # A logarithmic axis cannot show 0.
    positive = [value for value in values if value > 0]
    if panel == LOSS_SCALE and positive:
        return {'type': 'log', **powers_of_2(min(positive))}
    is_wide = bool(positive) and max(positive) > WIDE * min(positive)
    if panel == GRAD_NORM and is_wide:
        return {'type': 'log', 'dtick': 1, 'exponentformat': 'power'}
    return {
        'nticks': 5,
        'exponentformat': 'power',
        'rangemode': rangemode_of(panel, values),
    }


def rangemode_of(panel: str, values: Sequence[float]) -> str:
    """Return plotly's ``rangemode``, which says where an axis begins."""
    if not values or min(values) < 0:
        return 'normal'
    # Plotly would show a constant with 1 on both sides, so that a learning
    # rate of 1e-4 would look like 0.
    is_flat = min(values) == max(values)
    return 'tozero' if is_flat or panel == LR else 'nonnegative'


def powers_of_2(lowest: float) -> PlotlyObject:
    """Return ticks at powers of 2, one of them at the lowest value."""
    # Ticks of a logarithmic axis are given as exponents of 10. The page sets
    # how many powers lie between two ticks: it knows the range that is shown.
    power = math.log10(2)
    return {
        'tick0': round(math.log2(lowest)) * power,
        'dtick': power,
        'tickformat': ',.7~g',
    }
