"""The report of one run, read from its files.

:func:`load_run` reads the rows and scalars of a work dir, summarizes and
assesses them. The page, the text and the JSON show its :class:`RunReport`.
"""

import math
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from operator import sub
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from mmnanguard._support.escape import escape
from mmnanguard._support.process_identity import is_alive
from mmnanguard.core import GuardConfigError
from mmnanguard.core.rows.event_files import EVENTS_FILE, log_dir_of
from mmnanguard.core.rows.read_row import sentence_of

from .alerts import alerts_of, join_outcomes
from .assessment import Assessment, judge
from .badge import SICK
from .loss_rise import find_rise, find_rise_at_end
from .margins_line import describe_margins
from .panels import LOSS
from .read_events import find_parts, iter_events
from .read_samples import Samples, read_samples
from .read_scalars import Curve, read_scalars
from .recommendations import Step
from .run_files import (
    explain_no_rows,
    files_of_parts,
    last_start,
    launch_of,
    update_paths,
    work_dir_of,
)
from .summarize import MAX_KEPT, summarize
from .summary import Row, Summary
from .validation import Metric, describe_validation, metrics_of

__all__ = ['OnProgress', 'RunReport', 'load_run']

# Called with the number of bytes read so far, and that of all files.
OnProgress = Callable[[int, int], None]
STEP = 2**22  # bytes between two calls of OnProgress

# The states that need more words.
STATES = {
    'running': 'still running',
    'lost': 'ended without saying so',
    # The files cannot tell a running process from one that was killed.
    'unfinished': 'still running, or died without a word',
}


@dataclass(frozen=True)
class RunReport:
    """The report of one run.

    Attributes:
        path: The run's work dir or file, as the caller gave it.
        summary: The summary of the run's rows.
        curves: The run's scalars, by key.
        verdict: The assessment of the run.
        written: Time at which the last row or scalar was written.
        samples: The samples of the monitor.
        metrics: What the validations measured, the most important first.
    """

    path: str
    summary: Summary
    curves: Dict[str, Curve]
    verdict: Assessment
    written: datetime
    samples: Samples = field(default_factory=Samples)
    metrics: Tuple[Metric, ...] = ()

    @property
    def name(self) -> str:
        """Folder and name of the run, for headings."""
        path = Path(self.path).absolute()
        if path.as_posix().endswith(f'/{EVENTS_FILE}'):
            path = log_dir_of(path)
        # A run whose guard is off has no name.
        run = f' ({self.summary.run})' * bool(self.summary.run)
        return escape(f'{path.name}{run}')

    @property
    def state(self) -> str:
        """State of the run.

        'halted', 'finished', 'crashed', 'interrupted', 'running', 'lost' for
        a process that has ended without a row that says so, or 'unfinished'
        if the files cannot tell which of the last two.
        """
        summary = self.summary
        if summary.halt is not None:
            return 'halted'
        if summary.end is not None:
            return summary.end.how
        if summary.is_alive is not None:
            return 'running' if summary.is_alive else 'lost'
        # Version 0.1 wrote no row at the end.
        max_iters = self.summary.max_iters
        end = self.summary.last_iter + self.log_interval
        if max_iters and end >= max_iters:
            return 'finished'
        return 'unfinished'

    @property
    def log_interval(self) -> int:
        """The longest recent interval between two scalars, in iterations.

        The interval is 1 if there are fewer than two scalars.
        """
        longest: Sequence[int] = ()
        for curve in self.curves.values():
            longest = max(longest, curve.iters, key=len)
        # MMEngine logs every so many iterations, so that the last scalar may
        # come before the end of a finished run. Only the last intervals
        # count: earlier attempts may have logged less often.
        recent = longest[-100:]
        return max(map(sub, recent[1:], recent), default=1)

    @property
    def progress(self) -> str:
        """Last iteration, state, and time of the last row, in words."""
        max_iters = self.summary.max_iters
        known = f'iteration {self.summary.last_iter:,}'
        if max_iters is not None:
            known += f' of {max_iters:,}'
        story = STATES.get(self.state, self.state)
        return f'{known}, {story}; last written {self.written:%F %T} UTC'

    @property
    def first_line(self) -> str:
        """Badge and headline, with the begin of the trouble."""
        verdict = self.verdict
        since = ''
        # The headline of an end names the iteration itself.
        if verdict.badge == SICK and verdict.since is not None:
            since = f' since iteration {verdict.since:,}'
        return f'{verdict.badge}{since}: {verdict.headline}'

    @property
    def lines_below(self) -> List[Tuple[str, str]]:
        """Label and clause of each line below the first one."""
        verdict = self.verdict
        lines = [
            ('cause', verdict.cause),
            ('warned', verdict.warning.partition(' ')[2]),
            ('next', verdict.action),
            ('validation', describe_validation(self.metrics)),
        ]
        return [(label, clause) for label, clause in lines if clause]

    @property
    def margins(self) -> str:
        """The margins of a healthy run in a line; '' if there are none."""
        # The samples of trouble tell nothing of what is usual.
        if self.verdict.reasons:
            return ''
        return escape(describe_margins(self.samples))

    def to_dict(self) -> Dict[str, Any]:
        """Return the report as builtins; non-finite numbers are floats."""
        summary, verdict = self.summary, self.verdict
        return {
            'path': self.path,
            'run': summary.run,
            'healthy': verdict.is_healthy,
            'badge': verdict.badge,
            'headline': verdict.headline,
            'cause': verdict.cause,
            'warning': verdict.warning,
            'next': verdict.action,
            'verdict': verdict.sentence,
            'since': verdict.since,
            'reasons': verdict.reasons,
            'steps': list(map(Step._asdict, verdict.steps)),
            'state': self.state,
            'last_iter': summary.last_iter,
            'max_iters': summary.max_iters,
            'last_written': self.written.isoformat(timespec='seconds'),
            'attempts': len(summary.starts),
            'rows': summary.num_kinds,
            'causes': summary.causes,
            'actions': summary.actions,
            'rejected': summary.num_skipped,
            'culprits': {
                'parameters': list(map(asdict, summary.parameters)),
                'modules': list(map(asdict, summary.modules)),
                'samples': list(map(asdict, summary.samples)),
            },
            'alerts': [with_text(alert.row) for alert in alerts_of(summary)],
            'margins': self.margins,
            'validation': list(map(Metric._asdict, self.metrics)),
            'events': list(map(with_text, summary.events)),
        }


def with_text(row: Row) -> Dict[str, Any]:
    """Return a copy of a row with its sentence under 'text'."""
    return {**row, 'text': sentence_of(row)}


def load_run(
    path: str,
    run: Optional[str] = None,
    max_rows: int = MAX_KEPT,
    on_progress: Optional[OnProgress] = None,
) -> RunReport:
    """Read and assess one run.

    Args:
        path: A work dir or an ``events.jsonl``.
        run: The name of the run, see :func:`read_events`.
        max_rows: The approximate number of rows to keep for tables, see
            :func:`summarize`.
        on_progress: Called now and then, with the bytes that were read and
            the bytes of all files.

    Raises:
        GuardConfigError: If there is nothing to read.
    """
    if not Path(path).exists():
        raise GuardConfigError(
            f'{escape(path)}: there is no such folder or file.'
        )
    parts = find_parts(path, run)
    if not parts:
        raise GuardConfigError(explain_no_rows(path))
    # Sizes and times are taken before reading: the run may still be writing,
    # and a row that is written meanwhile must not look as if it was read.
    total, newest = 0, 0.0
    for file in files_of_parts(parts):
        stat = file.stat()
        total += stat.st_size
        newest = max(newest, stat.st_mtime)
    progress = Progress(total, on_progress)
    # Before the rows are read: a run that ends meanwhile writes a row that
    # would be missed.
    start = last_start(parts)
    is_running = is_alive(start.process)
    curves = read_scalars(parts, progress.add)
    samples = read_samples(parts, progress.add)
    ends = [curve.iters[-1] for curve in curves.values() if curve.iters]
    ends += samples.iters[-1:]
    # An iterator: the rows are never in memory together.
    rows = iter_events(parts, progress.add)
    summary = summarize(rows, max(ends, default=0), max_rows)
    update_paths(work_dir_of(path), summary)
    progress.finish()
    summary = replace(
        summary,
        is_alive=is_running,
        loss=curves.get(LOSS),
        log_nonfinite_since=nonfinite_since(curves.get(LOSS)),
        log_rise=find_rise(curves.get(LOSS)) or find_rise_at_end(summary.end),
        launch=replace(launch_of(path, parts, start), is_over=summary.is_over),
    )
    join_outcomes(summary)
    return RunReport(
        path=path,
        summary=summary,
        curves=curves,
        verdict=judge(summary),
        written=datetime.fromtimestamp(newest, timezone.utc),
        samples=samples,
        metrics=metrics_of(curves, work_dir_of(path)),
    )


def nonfinite_since(curve: Optional[Curve]) -> Optional[int]:
    """Return the iteration since which a curve is not finite, or None."""
    since = None
    if curve is not None:
        for iter_, value in zip(curve.iters, curve.values):
            if math.isfinite(value):
                since = None
            elif since is None:
                since = iter_
    return since


class Progress:
    """Counts bytes and reports them now and then.

    Args:
        total: The number of bytes in all files.
        on_progress: Called with the bytes so far and ``total``.
    """

    def __init__(self, total: int, on_progress: Optional[OnProgress]) -> None:
        self._total = total
        self._on_progress = on_progress
        self._done = self._reported = 0

    def add(self, num: int) -> None:
        """Count the bytes of a line."""
        self._done += num
        # A call for each line would take longer than reading the line.
        if self._on_progress and self._done - self._reported >= STEP:
            self._reported = self._done
            self._on_progress(self._done, self._total)

    def finish(self) -> None:
        """Report that all was read."""
        # The count may differ from the total: another run may share a file,
        # and the files may have grown.
        if self._on_progress:
            self._on_progress(self._total, self._total)
