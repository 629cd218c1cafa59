"""The report of one run, read from its files.

:func:`load_run` reads the rows and scalars of a work dir, summarizes and
assesses them. The page, the text and the JSON show its :class:`RunReport`.
"""

import shlex
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from operator import sub
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

from mmnanguard.core import GuardConfigError
from mmnanguard.core.rows.event_files import EVENTS_FILE, log_dir_of
from mmnanguard.core.rows.read_row import sentence_of

from .assessment import Assessment, judge
from .read_events import (
    Part,
    files_of,
    find_parts,
    iter_events,
    work_dirs_below,
)
from .read_scalars import Curve, read_scalars, scalars_of
from .recommendations import Step
from .summarize import MAX_KEPT, summarize
from .summary import Row, Summary

__all__ = ['OnProgress', 'RunReport', 'load_run']

# Called with the number of bytes read so far, and that of all files.
OnProgress = Callable[[int, int], None]
STEP = 2**22  # bytes between two calls of OnProgress

NO_EVENTS = (
    f'{{}} has no <timestamp>/{EVENTS_FILE}, so that there is nothing to '
    'report: the guard was not attached, or tells nobody. Train with '
    'python -m mmnanguard train CONFIG --guard full, or add '
    "default_hooks=dict(nan_guard=dict(type='mmnanguard.NanGuardHook'), "
    "event_log=dict(type='mmnanguard.EventLogHook')) to the config."
)
RUNS_BELOW = (
    f'{{}} has no <timestamp>/{EVENTS_FILE}. Give the work dir of a run; '
    'runs are below it: {}'
)
MAX_BELOW = 5  # work dirs that the message names
NO_ROWS = (
    '{} holds no row that names its run: it is empty, damaged, or no '
    'events.jsonl of mmnanguard. Give the work dir of a run, or another file.'
)


@dataclass(frozen=True)
class RunReport:
    """The report of one run.

    Attributes:
        path: The run's work dir or file, as the caller gave it.
        summary: The summary of the run's rows.
        curves: The run's scalars, by key.
        verdict: The assessment of the run.
        written: Time at which the last row or scalar was written.
    """

    path: str
    summary: Summary
    curves: Dict[str, Curve]
    verdict: Assessment
    written: datetime

    @property
    def name(self) -> str:
        """Folder and name of the run, for headings."""
        path = Path(self.path).absolute()
        if path.as_posix().endswith(f'/{EVENTS_FILE}'):
            path = log_dir_of(path)
        return f'{path.name} ({self.summary.run})'

    @property
    def state(self) -> str:
        """State of the run: 'halted', 'finished' or 'unfinished'.

        An unfinished run is still running, or died without a message.
        """
        if self.summary.halt is not None:
            return 'halted'
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
        story = self.state
        # The files cannot tell a running process from one that was killed.
        if story == 'unfinished':
            story = 'still running, or died without a word'
        return f'{known}, {story}; last written {self.written:%F %T} UTC'

    def to_dict(self) -> Dict[str, Any]:
        """Return the report as builtins; non-finite numbers are floats."""
        summary, verdict = self.summary, self.verdict
        return {
            'path': self.path,
            'run': summary.run,
            'healthy': verdict.is_healthy,
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
        raise GuardConfigError(f'{path}: there is no such folder or file.')
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
    curves = read_scalars(parts, progress.add)
    ends = [curve.iters[-1] for curve in curves.values() if curve.iters]
    # An iterator: the rows are never in memory together.
    rows = map(
        partial(with_present_paths, path), iter_events(parts, progress.add)
    )
    summary = summarize(rows, max(ends, default=0), max_rows)
    progress.finish()
    return RunReport(
        path=path,
        summary=summary,
        curves=curves,
        verdict=judge(summary),
        written=datetime.fromtimestamp(newest, timezone.utc),
    )


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


def explain_no_rows(path: str) -> str:
    """Return the error for a folder or file without rows of a run."""
    if files_of(path):
        return NO_ROWS.format(path)
    # A frequent mistake is to give 'work_dirs' itself.
    below = work_dirs_below(path)
    if not below:
        return NO_EVENTS.format(path)
    names = list(map(shlex.quote, below[:MAX_BELOW]))
    num_more = len(below) - len(names)
    more = f' and {num_more} more' * (num_more > 0)
    return RUNS_BELOW.format(path, ', '.join(names)) + more


def with_present_paths(path: str, row: Row) -> Row:
    """Return a row of a dump with the paths that its files have now.

    A dump without weights also gets a checkpoint of the run. Other rows are
    returned as they are.

    Args:
        path: The path of the run's work dir or file.
        row: A row of the run.
    """
    if row.get('kind') != 'dump':
        return row
    folder = Path(path)
    if folder.is_file():
        folder = folder.absolute().parents[2]
    row = dict(row)
    # The work dir may have moved since, or be mounted elsewhere. A dump is
    # three folders below it, so the last four names of its path stay.
    present = folder.joinpath(*Path(str(row.get('path'))).parts[-4:])
    if present.exists():
        row['path'] = str(present)
    if 'checkpoint' in (row.get('needs') or ()):
        row['checkpoint'] = checkpoint_of(folder)
    return row


def checkpoint_of(work_dir: Path) -> Optional[str]:
    """Return the checkpoint that a work dir points to; None without one."""
    # StateAuditHook points to the last checkpoint with finite weights, and
    # MMEngine to the last checkpoint, which the fault may have damaged.
    for name in ('last_clean_checkpoint', 'last_checkpoint'):
        pointer = work_dir / name
        if not pointer.is_file():
            continue
        target = Path(pointer.read_text(errors='replace').strip())
        # The pointer has the path of the time of writing; the work dir may
        # have moved since.
        for path in (work_dir / target.name, target):
            if path.is_file():
                return str(path)
    return None


def files_of_parts(parts: List[Part]) -> List[Path]:
    """Return the files of events and scalars, without repetitions."""
    files: List[Path] = []
    for part in parts:
        files += (part.path, scalars_of(part))
    # Several parts may be in one file.
    return list(filter(Path.exists, dict.fromkeys(files)))
