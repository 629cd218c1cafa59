"""Everything that is known of one run, read from its files."""

import shlex
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
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
from .summarize import MAX_KEPT, summarize
from .summary import Row, Summary

__all__ = ['OnProgress', 'RunReport', 'load_run']

OnProgress = Callable[[int, int], None]
STEP = 2**22  # bytes between two calls of it

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
MAX_BELOW = 5  # that are named
NO_ROWS = (
    '{} holds no row that names its run: it is empty, damaged, or no '
    'events.jsonl of mmnanguard. Give the work dir of a run, or another file.'
)


@dataclass(frozen=True)
class RunReport:
    """Everything that is known of one run.

    Attributes:
        path: Its work dir or file, as it was given.
        summary: What its rows come to.
        curves: Scalars by key.
        verdict: Is it healthy?
        written: When the last row or scalar was written.
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
        """'halted', 'finished', or 'unfinished': it runs, or died without a
        word. The end may be a few iterations after the last scalar.
        """
        if self.summary.halt is not None:
            return 'halted'
        iters = [curve.iters for curve in self.curves.values()]
        longest: Sequence[int] = max(iters, key=len, default=())
        gaps = [b - a for a, b in zip(longest[-100:], longest[-99:])]
        end = self.summary.last_iter + max(gaps, default=1)
        if end >= (self.summary.max_iters or float('inf')):
            return 'finished'
        return 'unfinished'

    @property
    def progress(self) -> str:
        """Last iteration, state, and time of the last row, in words."""
        of_all = self.summary.max_iters
        known = f'iteration {self.summary.last_iter:,}'
        if of_all is not None:
            known += f' of {of_all:,}'
        story = {
            'halted': 'halted',
            'finished': 'finished',
            'unfinished': 'still running, or died without a word',
        }[self.state]
        return f'{known}, {story}; last written {self.written:%F %T} UTC'

    def to_dict(self) -> Dict[str, Any]:
        """Return builtins; non-finite numbers are floats."""
        summary = self.summary
        culprits = {
            'parameters': summary.parameters,
            'modules': summary.modules,
            'samples': summary.samples,
        }
        return {
            'path': self.path,
            'run': summary.run,
            'healthy': self.verdict.is_healthy,
            'verdict': self.verdict.sentence,
            'since': self.verdict.since,
            'reasons': self.verdict.reasons,
            'steps': [step._asdict() for step in self.verdict.steps],
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
                key: [asdict(one) for one in found]
                for key, found in culprits.items()
            },
            'events': [with_text(row) for row in summary.events],
        }


def with_text(row: Any) -> Dict[str, Any]:
    return {**row, 'text': sentence_of(row)}


def load_run(
    path: str,
    run: Optional[str] = None,
    max_rows: int = MAX_KEPT,
    on_progress: Optional[OnProgress] = None,
) -> RunReport:
    """Read and judge one run.

    Args:
        path: A work dir or an ``events.jsonl``.
        run: See :func:`read_events`.
        max_rows: Kept for tables, see :func:`summarize`.
        on_progress: Called with bytes done and bytes in all, now and then.

    Raises:
        GuardConfigError: If there is nothing to read.
    """
    if not Path(path).exists():
        raise GuardConfigError(f'{path}: there is no such folder or file.')
    parts = find_parts(path, run)
    if not parts:
        raise GuardConfigError(tell_nothing(path))
    sizes = {file: file.stat() for file in files_of_parts(parts)}
    total = sum(stat.st_size for stat in sizes.values())
    done = told = 0

    def on_bytes(num: int) -> None:
        nonlocal done, told
        done += num
        if on_progress and done - told >= STEP:
            told = done
            on_progress(done, total)

    curves = read_scalars(parts, on_bytes)
    ends = [curve.iters[-1] for curve in curves.values() if curve.iters]
    rows = (found_here(row, path) for row in iter_events(parts, on_bytes))
    summary = summarize(rows, max(ends, default=0), max_rows)
    if on_progress:
        on_progress(total, total)
    newest = max(stat.st_mtime for stat in sizes.values())
    return RunReport(
        path=path,
        summary=summary,
        curves=curves,
        verdict=judge(summary),
        written=datetime.fromtimestamp(newest, timezone.utc),
    )


def tell_nothing(path: str) -> str:
    if files_of(path):
        return NO_ROWS.format(path)
    below = work_dirs_below(path)
    if not below:
        return NO_EVENTS.format(path)
    names = [shlex.quote(folder) for folder in below[:MAX_BELOW]]
    more = len(below) - len(names)
    told = f' and {more} more' if more else ''
    return RUNS_BELOW.format(path, ', '.join(names)) + told


def found_here(row: Row, path: str) -> Row:
    """A dump tells where it was written; the work dir may have moved since.
    One without weights is told a checkpoint of the run.
    """
    if row.get('kind') != 'dump':
        return row
    folder = Path(path)
    if folder.is_file():
        folder = folder.absolute().parents[2]
    here = folder.joinpath(*Path(str(row.get('path'))).parts[-4:])
    found = {**row, 'path': str(here)} if here.exists() else {**row}
    if 'checkpoint' in (row.get('needs') or ()):
        found['checkpoint'] = checkpoint_of(folder)
    return found


def checkpoint_of(work_dir: Path) -> Optional[str]:
    for name in ('last_clean_checkpoint', 'last_checkpoint'):
        pointer = work_dir / name
        if not pointer.is_file():
            continue
        told = Path(pointer.read_text(errors='replace').strip())
        for path in (work_dir / told.name, told):
            if path.is_file():
                return str(path)
    return None


def files_of_parts(parts: List[Part]) -> List[Path]:
    files = [file for part in parts for file in (part.path, scalars_of(part))]
    return [file for file in dict.fromkeys(files) if file.exists()]
