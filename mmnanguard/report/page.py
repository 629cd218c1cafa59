"""The report as one HTML file.

The page is a template, plotly.js, and the data of all runs as JSON, from which
the scripts in ``template`` build the elements.
"""

import json
from collections import Counter
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Dict, Iterable, List, Mapping, Optional, Sequence

from mmnanguard._support.atomic_write import atomic_write
from mmnanguard.core import GuardConfigError
from mmnanguard.core.causes import facts_of_cause
from mmnanguard.core.rows.json_numbers import to_json

from .alerts import alerts_of
from .comparison_figure import COLORS, draw_comparison
from .figure import draw
from .margins_line import describe_margins
from .panels import titles
from .parse_row import iter_of
from .recommendations import Step
from .row_text import command_of, text_of
from .run_report import RunReport
from .stability_figure import draw_stability
from .summary import Culprit, Row, Summary

__all__ = ['write_page']

JsonObject = Dict[str, object]

TEMPLATE = Path(__file__).with_name('template')
# The parts of the script, in the order in which they use one another.
SCRIPTS = ('elements.js', 'verdict.js', 'events.js', 'charts.js', 'page.js')
# The limits for one row: a page may hold about 2,000 rows of a run, and a
# browser must still be able to open it.
MAX_SAMPLES = 128  # names of samples in a row
MAX_DETAIL = 800  # characters of a row's details
MAX_LINE = 250  # characters of a line of the details
# The kinds of rows that the line below the verdict counts, and their labels.
KINDS = {
    'rollback': 'rollbacks',
    'audit': 'bad audits',
    'halt': 'halts',
    'remedy': 'remedies',
    'dump': 'dumps',
}
# Keys that the details leave out: other columns show them, or they have the
# same value in every row.
SHOWN = (
    *('schema', 'kind', 'run', 'iter', 'place', 'action', 'cause', 'loss'),
    *('grad_norm', 'loss_scale', 'samples', 'story', 'num_bad_params'),
    *('num_params', 'config', 'path', 'outcome'),
)
FACTORS = ('clip_coef', 'lr_factor')  # 1 means that nothing was changed


def write_page(
    reports: Sequence[RunReport],
    path: Path,
    reload_after: Optional[float] = None,
) -> None:
    """Write one HTML file that needs no network.

    The file is replaced as a whole, so that readers never see half of it.

    Args:
        reports: The runs, which get one section each.
        path: The file of the page.
        reload_after: Seconds after which the page loads itself again; None
            means never.

    Raises:
        GuardConfigError: If plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise GuardConfigError(
            'The page is drawn by plotly, which is not installed: pip install '
            'plotly. --json needs nothing.'
        ) from error
    # All runs get the same axis of iterations, so that they can be compared.
    end = max(report.summary.last_iter for report in reports)
    begin = min(report.summary.first_iter for report in reports) - 1
    data: JsonObject = {
        'made': f'{datetime.now(timezone.utc):%F %T} UTC',
        'reload': reload_after,
        'titles': titles(),
        'comparison': None,
        'runs': [section(report, end, begin) for report in reports],
    }
    if len(reports) > 1:
        data['comparison'] = draw_comparison(reports, end, begin)
        data['colors'] = list(COLORS)
    names = ', '.join(report.name for report in reports)
    parts = {
        'TITLE': escape(f'{names}: mmnanguard report'),
        'STYLE': (TEMPLATE / 'page.css').read_text(encoding='utf-8'),
        # A name in the rows may hold '</script>', which would end the element.
        # In JSON strings '\u003c' is the same character.
        'DATA': to_json(data).replace('<', '\\u003c'),
        'PLOTLY': get_plotlyjs(),
        'SCRIPT': read_script(),
    }
    write_template(path, parts)


def read_script() -> str:
    """Return the script of the page, from its parts."""
    parts = []
    for name in SCRIPTS:
        parts.append((TEMPLATE / name).read_text(encoding='utf-8'))
    return '\n'.join(parts)


def write_template(path: Path, parts: Mapping[str, str]) -> None:
    """Write the HTML template with its ``{{NAME}}`` replaced by the parts."""
    template = (TEMPLATE / 'page.html').read_text(encoding='utf-8')
    # The template is split once. Replacing name after name would also replace
    # '{{' in the parts, and would copy the megabytes of plotly.js each time.
    first, *pieces = template.split('{{')
    # File names may have lone surrogates, which UTF-8 cannot encode.
    with atomic_write(path) as temporary_path, open(
        temporary_path, 'w', encoding='utf-8', errors='backslashreplace'
    ) as file:
        file.write(first)
        for piece in pieces:
            name, rest = piece.split('}}', 1)
            file.write(parts[name] + rest)


def section(report: RunReport, end: int, begin: int = 0) -> JsonObject:
    """Return the data of one run, as builtins.

    Args:
        report: The report of the run.
        end: The iteration at which the axes end.
        begin: The iteration after which they begin.
    """
    summary, verdict = report.summary, report.verdict
    # Rows refer to names by number, because many rows may share a name.
    names: Dict[str, int] = {}
    events = [compact_row(row, names) for row in summary.events]
    return {
        'name': report.name,
        'path': report.path,
        'healthy': verdict.is_healthy,
        'verdict': verdict.sentence,
        'badge': verdict.badge,
        'headline': verdict.headline,
        'since': verdict.since,
        'lines': report.lines_below,
        'reasons': verdict.reasons,
        'steps': list(map(Step._asdict, verdict.steps)),
        'progress': report.progress,
        'facts': facts_of(summary),
        'causes': causes_of(summary),
        'culprits': {
            'parameters': list(map(culprit_to_json, summary.parameters)),
            'modules': list(map(culprit_to_json, summary.modules)),
            'samples': list(map(culprit_to_json, summary.samples)),
        },
        'num_forgotten': summary.num_forgotten,
        'events': events,
        'names': list(names),
        'num_rows': summary.num_rows,
        'kinds': summary.num_kinds,
        'figure': draw(report, end, begin),
        'margins': report.margins,
        'stability': stability_of(report, end, begin),
    }


def stability_of(
    report: RunReport, end: int, begin: int
) -> Optional[JsonObject]:
    """Return the samples of a run in words and as a figure, or None."""
    figure = draw_stability(report, end, begin)
    if figure is None:
        return None
    had_trouble = bool(report.verdict.reasons)
    margins = describe_margins(report.samples, not had_trouble)
    return {'text': margins.partition(': ')[2], 'figure': figure}


def causes_of(summary: Summary) -> List[JsonObject]:
    """Return name, count and color of the causes in a run."""
    causes: List[JsonObject] = []
    for cause, count in summary.causes.items():
        color = facts_of_cause(cause).color
        causes.append({'name': cause, 'count': count, 'color': color})
    return causes


def facts_of(summary: Summary) -> List[List[str]]:
    """Return the names and values in the line below the verdict."""
    counts = {
        'iterations': summary.num_iters,
        'attempts': len(summary.starts),
        'rejected': summary.num_skipped,
        'routine overflows': summary.num_routine,
    }
    for kind, name in KINDS.items():
        counts[name] = summary.num_kinds.get(kind, 0)
    counts['alerts'] = len(alerts_of(summary))
    return [[name, f'{count:,}'] for name, count in counts.items()]


def culprit_to_json(culprit: Culprit) -> JsonObject:
    """Return a row of the tables of culprits."""
    # Counter sorts by count, and keeps the order of equal counts.
    causes = Counter(culprit.causes).most_common()
    return {
        'name': culprit.name,
        'count': culprit.count,
        'routine': culprit.num_routine,
        'batches': culprit.num_batches,
        'first': culprit.first,
        'last': culprit.last,
        'causes': ', '.join(f'{cause} {num:,}' for cause, num in causes),
    }


def compact_row(row: Row, names: Dict[str, int]) -> JsonObject:
    """Return a row of the table of events.

    Args:
        row: A row of the run.
        names: The numbers by which rows refer to names. Names that are not
            in it are added.
    """
    samples = list(row.get('samples') or ())
    # Another version of mmnanguard may write something else than a dict.
    scale = row.get('loss_scale')
    if not isinstance(scale, Mapping):
        scale = None
    return {
        'place': row['place'],
        'iter': iter_of(row),
        'kind': str(row.get('kind')),
        'action': row.get('action'),
        'cause': row.get('cause'),
        'params': numbers_of(named_in(row), names),
        'samples': numbers_of(samples[:MAX_SAMPLES], names),
        'num_samples': len(samples),
        'loss': row.get('loss'),
        'grad_norm': row.get('grad_norm'),
        'scale': scale,
        'text': text_of(row),
        'code': command_of(row),
        'detail': detail_of(row),
    }


def numbers_of(items: Iterable[object], names: Dict[str, int]) -> List[int]:
    """Return the numbers of the items; new names are added to ``names``."""
    numbers = []
    for name in map(str, items):
        numbers.append(names.setdefault(name, len(names)))
    return numbers


def named_in(row: Row) -> List[str]:
    """Return the parameters, buffers and modules that a row names."""
    names = []
    # Updates have 'params', audits 'tensors' and autopsies a module.
    for tensor in (*(row.get('params') or ()), *(row.get('tensors') or ())):
        names.append(tensor.get('name'))
    names.append(row.get('module'))
    return list(filter(None, names))


def detail_of(row: Row) -> str:
    """Return the keys that no other column shows, one line per key."""
    lines = []
    for key, value in row.items():
        is_shown = key in SHOWN or (key in FACTORS and value == 1)
        # Zero and False are facts, unlike an empty value.
        if is_shown or value in (None, '', [], {}):
            continue
        line = f'{key}: {json.dumps(value, ensure_ascii=False)}'
        lines.append(line[:MAX_LINE])
    return '\n'.join(lines)[:MAX_DETAIL]
