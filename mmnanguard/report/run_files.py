"""The files of a run, and what the commands to paste say of them."""

from contextlib import suppress
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence

from mmnanguard._support.escape import escape, shell_word
from mmnanguard.core.launch import Launch, dumped_config
from mmnanguard.core.older_checkpoint import older_checkpoint
from mmnanguard.core.rows.dump_row import DumpRow
from mmnanguard.core.rows.event_files import (
    EVENTS_FILE,
    events_files,
    log_dir_of,
    samples_file,
)
from mmnanguard.core.rows.read_row import record_of
from mmnanguard.core.rows.start_row import StartRow

from .read_events import Part, files_of, read_part, work_dirs_below
from .read_scalars import scalars_of
from .summary import Row, Summary

__all__ = [
    'explain_no_rows',
    'files_of_parts',
    'last_start',
    'launch_of',
    'update_paths',
    'work_dir_of',
]

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


def explain_no_rows(path: str) -> str:
    """Return the error for a folder or file without rows of a run."""
    if files_of(path):
        return NO_ROWS.format(escape(path))
    # A frequent mistake is to give 'work_dirs' itself.
    below = work_dirs_below(path)
    if not below:
        return NO_EVENTS.format(escape(path))
    names = list(map(shell_word, below[:MAX_BELOW]))
    num_more = len(below) - len(names)
    more = f' and {num_more} more' * (num_more > 0)
    return RUNS_BELOW.format(escape(path), ', '.join(names)) + more


def last_start(parts: Sequence[Part]) -> StartRow:
    """Return the record of the last process start."""
    parsed = next(read_part(parts[-1]), None)
    if parsed is not None:
        record = record_of(parsed.row)
        if isinstance(record, StartRow):
            return record
    # The row is lost.
    return StartRow()


def launch_of(path: str, parts: Sequence[Part], start: StartRow) -> Launch:
    """Return what the commands on a run need."""
    work_dir, log_dir = work_dir_of(path), log_dir_of(parts[-1].path)
    # As the caller gave it, like the work dir.
    with suppress(ValueError):
        log_dir = work_dir / log_dir.relative_to(work_dir.absolute())
    return Launch(
        config=dumped_config(log_dir, work_dir),
        work_dir=str(work_dir),
        launcher=start.launcher,
        ranks=start.ranks,
        ranks_per_node=start.ranks_per_node,
        lr_factor=start.lr_factor,
    )


def work_dir_of(path: str) -> Path:
    """Return the work dir of a run.

    Args:
        path: The work dir, the folder of a process start, or its event file.
    """
    folder = Path(path)
    # A command would take the name '-a' for an option.
    if str(folder).startswith('-'):
        folder = folder.absolute()
    if folder.is_file():
        return log_dir_of(folder).parent
    if events_files(path):
        return folder
    return folder.absolute().parent


def update_paths(folder: Path, summary: Summary) -> None:
    """Give the rows of dumps the paths that their files have now.

    A dump without weights also gets a checkpoint of the run that is older.

    Args:
        folder: The work dir.
        summary: The summary, whose rows are changed.
    """
    updates: Dict[object, Row] = {}
    for row in summary.events:
        if row.get('kind') == 'update':
            updates[row.get('id')] = row
    for row in summary.others.get(DumpRow.KIND, ()):
        # The work dir may have moved since, or be mounted elsewhere. A dump
        # is three folders below it, so the last four names of its path stay.
        parts = Path(str(row.get('path'))).parts[-4:]
        present = folder.joinpath(*parts)
        # A file that cannot be looked for, as with too long a name, is none.
        with suppress(OSError, ValueError):
            if present.exists():
                row['path'] = str(present)
        if 'checkpoint' in (row.get('needs') or ()):
            row['checkpoint'] = checkpoint_of(folder, row, updates)


def checkpoint_of(
    folder: Path, row: Row, updates: Mapping[object, Row]
) -> Optional[str]:
    """Return a checkpoint that is older than a dump; None if none is left."""
    # The hook has noted the newest file of that moment. It may be gone.
    noted = row.get('checkpoint')
    if noted:
        for path in (folder / Path(noted).name, Path(noted)):
            with suppress(OSError, ValueError):
                if path.is_file():
                    return str(path)
    if row.get('iter') is None:
        return None
    update = updates.get(row.get('id'), {})
    return older_checkpoint(
        folder, row['iter'], update.get('epoch') or 1, update.get('batch_idx')
    )


def files_of_parts(parts: List[Part]) -> List[Path]:
    """Return all files that are read, without repetitions."""
    files: List[Path] = []
    for part in parts:
        files += (part.path, scalars_of(part), samples_file(part.path))
    # Several parts may be in one file.
    return list(filter(Path.exists, dict.fromkeys(files)))
