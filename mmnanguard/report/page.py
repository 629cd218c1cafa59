"""The report as one HTML file."""

import json
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from mmnanguard._support.atomic_write import atomic_write
from mmnanguard.core import GuardConfigError
from mmnanguard.core.causes import facts_of_cause
from mmnanguard.core.rows.json_numbers import to_json
from mmnanguard.core.rows.read_row import sentence_of

from .figure import draw
from .panels import titles
from .row_text import command_of
from .run_report import RunReport
from .summary import Culprit, Row

__all__ = ['write_page']

TEMPLATE = Path(__file__).with_name('template')
MAX_SAMPLES = 128  # of a row
MAX_DETAIL = 800  # characters of a row
KINDS = {
    'rollback': 'rollbacks',
    'audit': 'bad audits',
    'halt': 'halts',
    'remedy': 'remedies',
    'dump': 'dumps',
}
# In the other columns, or the same in every row.
SHOWN = (
    *('schema', 'kind', 'run', 'iter', 'place', 'action', 'cause', 'loss'),
    *('grad_norm', 'loss_scale', 'samples', 'story', 'num_bad_params'),
    *('num_params', 'config', 'path'),
)
FACTORS = ('clip_coef', 'lr_factor')


def write_page(
    reports: Sequence[RunReport],
    path: Path,
    reload_after: Optional[float] = None,
) -> None:
    """One HTML file that needs no network; readers never see half of it.

    Args:
        reports: A section for each.
        path: Of the page.
        reload_after: Seconds after which the page loads itself again; None:
            never.

    Raises:
        GuardConfigError: Without plotly.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise GuardConfigError(
            'The page is drawn by plotly, which is not installed: pip install '
            'plotly. --json needs nothing.'
        ) from error
    end = max(report.summary.last_iter for report in reports)
    data = {
        'made': f'{datetime.now(timezone.utc):%F %T} UTC',
        'reload': reload_after,
        'titles': titles(),
        'runs': [section(report, end) for report in reports],
    }
    names = ', '.join(report.name for report in reports)
    parts = {
        'TITLE': escape(f'{names}: mmnanguard report'),
        'STYLE': (TEMPLATE / 'page.css').read_text(encoding='utf-8'),
        # No end of the script element, whatever the names of a run hold.
        'DATA': to_json(data).replace('<', '\\u003c'),
        'PLOTLY': get_plotlyjs(),
        'SCRIPT': (TEMPLATE / 'page.js').read_text(encoding='utf-8'),
    }
    page = (TEMPLATE / 'page.html').read_text(encoding='utf-8')
    pieces = page.split('{{')
    with atomic_write(path) as aside, open(
        aside, 'w', encoding='utf-8', errors='backslashreplace'
    ) as file:
        file.write(pieces[0])
        for piece in pieces[1:]:
            name, rest = piece.split('}}', 1)
            file.write(parts[name] + rest)


def section(report: RunReport, end: int) -> Dict[str, Any]:
    """Return the data of one run, as plain builtins."""
    summary, verdict = report.summary, report.verdict
    names: Dict[str, int] = {}
    return {
        'name': report.name,
        'path': report.path,
        'healthy': verdict.is_healthy,
        'verdict': verdict.sentence,
        'reasons': verdict.reasons,
        'steps': [step._asdict() for step in verdict.steps],
        'progress': report.progress,
        'facts': facts_of(report),
        'causes': [
            {
                'name': cause,
                'count': count,
                'color': facts_of_cause(cause).color,
            }
            for cause, count in summary.causes.items()
        ],
        'culprits': {
            'parameters': [tell_culprit(one) for one in summary.parameters],
            'modules': [tell_culprit(one) for one in summary.modules],
            'samples': [tell_culprit(one) for one in summary.samples],
        },
        'num_forgotten': summary.num_forgotten,
        'events': [compact(row, names) for row in summary.events],
        'names': list(names),
        'num_rows': summary.num_rows,
        'kinds': summary.num_kinds,
        'figure': draw(report, end),
    }


def facts_of(report: RunReport) -> List[List[str]]:
    """Return names and values of the line below the verdict."""
    summary = report.summary
    kinds = summary.num_kinds
    return [
        ['iterations', f'{summary.last_iter:,}'],
        ['attempts', f'{len(summary.starts):,}'],
        ['rejected', f'{summary.num_skipped:,}'],
        ['routine overflows', f'{summary.num_routine:,}'],
        *([name, f'{kinds.get(kind, 0):,}'] for kind, name in KINDS.items()),
    ]


def tell_culprit(one: Culprit) -> Dict[str, Any]:
    causes = sorted(one.causes.items(), key=lambda item: -item[1])
    return {
        'name': one.name,
        'count': one.count,
        'routine': one.num_routine,
        'batches': one.num_batches,
        'first': one.first,
        'last': one.last,
        'causes': ', '.join(f'{cause} {num:,}' for cause, num in causes),
    }


def compact(row: Row, names: Dict[str, int]) -> Dict[str, Any]:
    """Return a row of the table of events.

    Names stand in it by their number in ``names``.
    """

    def numbers(given: Any) -> List[int]:
        return [names.setdefault(str(name), len(names)) for name in given]

    samples = list(row.get('samples') or ())
    scale = row.get('loss_scale')
    return {
        'place': row['place'],
        'iter': row['iter'],
        'kind': str(row.get('kind')),
        'action': row.get('action'),
        'cause': row.get('cause'),
        'params': numbers(named_in(row)),
        'samples': numbers(samples[:MAX_SAMPLES]),
        'num_samples': len(samples),
        'loss': row.get('loss'),
        'grad_norm': row.get('grad_norm'),
        'scale': scale if isinstance(scale, Mapping) else None,
        'text': sentence_of(row),
        'code': command_of(row),
        'detail': detail_of(row),
    }


def named_in(row: Row) -> List[str]:
    """Return the parameters, buffers and modules that a row names."""
    tensors = [*(row.get('params') or ()), *(row.get('tensors') or ())]
    names = [tensor.get('name') for tensor in tensors]
    return [name for name in (*names, row.get('module')) if name]


def detail_of(row: Row) -> str:
    """Return what the other columns do not show, one line per key."""
    lines = [
        f'{key}: {json.dumps(value, ensure_ascii=False)}'
        for key, value in row.items()
        if key not in SHOWN
        and value not in (None, '', [], {})
        and not (key in FACTORS and value == 1)
    ]
    text = '\n'.join(line[:250] for line in lines)
    return text[:MAX_DETAIL]
