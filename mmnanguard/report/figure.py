import math
from html import escape
from typing import (
    Any,
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
)

from .read_scalars import PANELS, Curve, panel_of
from .run_report import RunReport
from .summary import Row
from .tell import as_number
from .thin_out import Points, count_by_bin, thin_curve

__all__ = ['COLORS', 'draw']

COLORS = {
    'scale_overflow': '#8d99ae',
    'grad_nonfinite': '#f28e2b',
    'norm_overflow': '#b07aa1',
    'loss_nonfinite': '#e15759',
    'buffer_nonfinite': '#17a2a2',
    'input_nonfinite': '#8e5bd0',
    'spike': '#d4a300',
    'divergence': '#d6409f',
    'weight_nonfinite': '#a4161a',
}
OTHER = '#6c757d'
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
HEIGHTS = {
    'loss': 200,
    'gradient norm': 170,
    'loss scale': 100,
    'learning rate': 100,
    'rejected': 120,
    'what followed': 130,
}
GAP = 14  # pixels between panels
HUGE = 1e30  # no axis can show it beside others
NUM_BINS = 120
MAX_LINES = 40  # that mark where a run was resumed, halted, rolled back
FIELDS = {'loss': 'loss', 'gradient norm': 'grad_norm'}
Trace = Dict[str, Any]


def draw(report: RunReport, last_iter: Optional[int] = None) -> Dict[str, Any]:
    """The figure of one run: panels over iterations, one below the other.

    Args:
        report: Of the run.
        last_iter: Where the axis ends; that of the run if None.

    Returns:
        ``data`` and ``layout`` as plotly.js takes them, checked by plotly.
    """
    from plotly.graph_objects import Figure  # a report in text needs none

    end = last_iter or report.summary.last_iter
    panels = traces_of(report, end)
    layout = layout_of(panels, end)
    data = []
    for number, traces in enumerate(panels.values(), 1):
        axis = '' if number == 1 else number
        for trace in traces:
            data.append({**trace, 'xaxis': 'x', 'yaxis': f'y{axis}'})
    layout['shapes'] = lines_of(report.summary.events)
    return Figure(data, layout).to_plotly_json()


def traces_of(report: RunReport, end: int) -> Dict[str, List[Trace]]:
    """By panel, top down; only panels that have something to show."""
    updates = [r for r in report.summary.events if r.get('kind') == 'update']
    panels: Dict[str, List[Trace]] = {}
    for panel in PANELS:
        curves = {
            key: curve
            for key, curve in report.curves.items()
            if panel_of(key) == panel
        }
        traces = curves_of(panel, curves, updates)
        if panel in FIELDS:
            traces += markers_of(FIELDS[panel], traces, updates)
        panels[panel] = traces
    panels['rejected'] = bars_of(report, end)
    panels['what followed'] = marks_of(report.summary.events)
    return {panel: traces for panel, traces in panels.items() if traces}


def curves_of(
    panel: str, curves: Mapping[str, Curve], updates: Sequence[Row]
) -> List[Trace]:
    """The scalars; without any, learning rate and scale of the events."""
    points = {
        key: thin_curve(curve.iters, curve.values)
        for key, curve in curves.items()
    }
    if panel == 'loss scale' and len(points) < 2:
        key = next(iter(points), panel)
        points = {key: merged(points.get(key, ([], [])), scales_of(updates))}
    if panel == 'learning rate' and not points:
        points = {panel: rates_of(updates)}
    names = sorted(points, key=lambda key: (key != 'loss', key))
    return [
        {
            'type': 'scatter',
            'mode': 'lines' if len(points[name][0]) > 1 else 'lines+markers',
            'x': points[name][0],
            'y': points[name][1],
            'name': escape(name),
            'showlegend': panel == 'loss' and len(names) > 1,
            # The parts of a loss can be switched on.
            'visible': 'legendonly' if number and panel == 'loss' else True,
            'line': {
                'color': LINES[number % len(LINES)],
                'width': 1.5,
                'shape': 'hv' if panel == 'loss scale' else 'linear',
            },
            'hovertemplate': f'iteration %{{x:,}}<br>{escape(name)} '
            '%{y:.5g}<extra></extra>',
        }
        for number, name in enumerate(names)
        if points[name][0]
    ]


def scales_of(updates: Sequence[Row]) -> Points:
    scales = [(row['iter'], row.get('loss_scale')) for row in updates]
    told = [(iter_, scale['after']) for iter_, scale in scales if scale]
    return [iter_ for iter_, _ in told], [scale for _, scale in told]


def rates_of(updates: Sequence[Row]) -> Points:
    told = [(row['iter'], row['lr'][0]) for row in updates if row.get('lr')]
    return [iter_ for iter_, _ in told], [rate for _, rate in told]


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
    values = [as_number(row.get(field)) for row in updates]
    finite = [
        v for v in values if isinstance(v, (int, float)) and abs(v) < 1e30
    ]
    if not drawn and not finite:
        return []
    top = max(drawn or finite)
    by_cause: Dict[str, List[Tuple[Row, Any]]] = {}
    for row, value in zip(updates, values):
        is_low = is_number(value) and abs(value) <= abs(top)
        y = value if is_low else top
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
                'color': COLORS.get(cause, OTHER),
                'size': 8,
                'line': {'width': 1, 'color': 'rgba(255,255,255,0.7)'},
            },
            'hovertemplate': '%{text}<extra></extra>',
        }
        for cause, rows in by_cause.items()
    ]


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


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
                'color': COLORS.get(cause, OTHER),
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


def lines_of(events: Sequence[Row]) -> List[Dict[str, Any]]:
    """Through all panels, where a run was resumed, went back or halted."""
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
    total = sum(HEIGHTS[panel] for panel in panels) + GAP * (len(panels) - 1)
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
            'anchor': f'y{len(panels)}' if len(panels) > 1 else 'y',
            'tickformat': ',d',
        },
    }
    top = total
    for number, panel in enumerate(panels, 1):
        bottom = top - HEIGHTS[panel]
        layout[f'yaxis{number if number > 1 else ""}'] = {
            'domain': [max(bottom / total, 0), top / total],
            'anchor': 'x',
            'title': {'text': panel, 'standoff': 8},
            **axis_of(panel, panels[panel]),
        }
        top = bottom - GAP
    return layout


def axis_of(panel: str, traces: Sequence[Trace]) -> Dict[str, Any]:
    """How its values are drawn."""
    if panel == 'what followed':
        return {'type': 'category', 'showgrid': False, 'fixedrange': True}
    if panel == 'rejected':
        columns = zip(*(trace['y'] for trace in traces))
        is_low = max(map(sum, columns)) < 5
        return {
            'rangemode': 'tozero',
            'tickformat': ',d',
            'nticks': 5,
            'dtick': 1 if is_low else None,
        }
    values = [y for trace in traces for y in trace['y'] if y and y > 0]
    if panel == 'loss scale' and values:
        return {'type': 'log', **powers_of_2(values)}
    if panel == 'gradient norm' and max(values) > 30 * min(values):
        return {'type': 'log', 'dtick': 1, 'exponentformat': 'power'}
    return {'nticks': 5, 'exponentformat': 'power'}


def powers_of_2(values: Iterable[float]) -> Dict[str, Any]:
    """At most six ticks, a power of 2 apart."""
    exponents = sorted(round(math.log2(value)) for value in values)
    low, high = exponents[0], exponents[-1]
    ticks = range(low, high + 1, max(-(-(high - low) // 5), 1))
    return {
        'tickvals': [2.0**tick for tick in ticks],
        'ticktext': [f'{2.0**tick:,g}' for tick in ticks],
    }
