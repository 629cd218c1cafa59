"""The rows of a run, as if it had never been interrupted.

A run may have several process starts ('attempts') in several files, and a
file may have rows of several runs. :func:`find_parts` reads the files once and
finds which bytes belong to which attempt. :func:`iter_events` reads the rows
of these parts and drops those that a later attempt wrote again.
"""

import logging
import math
from itertools import chain
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from mmnanguard.core import GuardConfigError
from mmnanguard.core.rows.event_files import EVENTS_FILE, events_files

from .parse_row import Row, iter_of, parse

__all__ = [
    'Part',
    'files_of',
    'find_parts',
    'iter_events',
    'read_events',
    'read_part',
    'work_dirs_below',
]

# Depths at which `work_dirs_below` searches for event files. Depth 1 is the
# folder of a process start, which is where a work dir has its own files.
DEPTHS = range(2, 5)
MAX_WARNED = 3  # damaged lines of a file that get a warning of their own
OnBytes = Callable[[int], None]


class Part(NamedTuple):
    """The place in a file where one process start wrote its rows.

    Attributes:
        path: The file.
        begin: Offset of the first byte.
        end: Offset of the byte after the last one.
        line: Number of the first line, from 1.
        run: Name of the run.
        attempt: Number of the process start, from 1.
        first: The iteration that the process ran first; None if its row of
            kind 'start' is lost.
    """

    path: Path
    begin: int
    end: int
    line: int
    run: str = ''
    attempt: int = 1
    first: Optional[int] = None


class ParsedRow(NamedTuple):
    """A row, and the process start that wrote it.

    Attributes:
        run: Name of the run.
        attempt: Number of the process start.
        row: The row as it stands in the file.
    """

    run: str
    attempt: int
    row: Row


def read_events(work_dir: str, run: Optional[str] = None) -> List[Row]:
    """Return all rows of a run, as if it had never been interrupted.

    A process start ('attempt') of a run writes ``events.jsonl`` in a folder
    of its own. Two starts within one second share a folder. The attempts
    become one list:

    - Attempts are in order, and the rows of an attempt are in the order in
      which they were written.
    - A later attempt starts from a checkpoint and may run iterations again.
      The rows of earlier attempts on these iterations are dropped, and so are
      the rows joined to them by id. All rows of kind 'start' stay; their
      ``iter`` is the first iteration that the attempt runs.
    - A row that names no run belongs to the attempt of the row before it. Ids
      are unique within an attempt only: join by id in the returned list.
    - A line that is no JSON object is left out, with a warning in the log. If
      a process was killed, its last line may be half-written.

    Args:
        work_dir: The work dir of the run, or one ``events.jsonl``. All event
            files of a work dir are read.
        run: The name of the run, if there are several; None means the last
            run in the newest folder. The names of the folders are times.

    Returns:
        The rows as they are in the files, but without values that are of
        another type than their key has. A non-finite number is the string
        'nan', 'inf' or '-inf'. The list is empty if there are no rows.

    Raises:
        GuardConfigError: If there is no such run.
    """
    return list(iter_events(find_parts(work_dir, run)))


def find_parts(work_dir: str, run: Optional[str] = None) -> List[Part]:
    """Return the places of a run's rows, in order of attempts.

    Reads the files once. Arguments and errors are those of
    :func:`read_events`.
    """
    parts = list(chain.from_iterable(map(parts_of, files_of(work_dir))))
    if not parts and run is None:
        return []
    if run is None:
        run = parts[-1].run
    parts_of_run = [part for part in parts if part.run == run]
    if not parts_of_run:
        known = ', '.join(dict.fromkeys(repr(part.run) for part in parts))
        raise GuardConfigError(
            f'{work_dir} has no run {run!r}; known runs: {known or "none"}'
        )
    # The sort is stable: parts of one attempt stay in order of time.
    return sorted(parts_of_run, key=lambda part: part.attempt)


def iter_events(
    parts: Sequence[Part], on_bytes: OnBytes = lambda num: None
) -> Iterator[Row]:
    """Yield the rows that :func:`read_events` returns, in little memory.

    Args:
        parts: The parts of one run, from :func:`find_parts`.
        on_bytes: Called with the number of bytes of each line that is read.
    """
    repeats = RepeatedRows(parts)
    for part in parts:
        for parsed in read_part(part, on_bytes, warns=True):
            # Two runs that began within a second share a file.
            if parsed.run == part.run and parsed not in repeats:
                yield parsed.row


class RepeatedRows:
    """The rows of iterations that a later attempt ran again.

    Args:
        parts: The parts of one run.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._ends: Dict[int, float] = {}
        self._ids: Set[Tuple[int, Any]] = set()
        # An autopsy may be written before the update that has its iteration,
        # so all ids must be known before the first row is checked.
        for part in parts:
            if self._end_of(part.attempt) < math.inf:
                self._add_ids(part)

    def __contains__(self, parsed: ParsedRow) -> bool:
        row = parsed.row
        # A start is never dropped: it marks the resumption itself.
        if row.get('kind') == 'start':
            return False
        iter_ = iter_of(row)
        if iter_ is not None:
            return iter_ >= self._end_of(parsed.attempt)
        return (parsed.attempt, row.get('id')) in self._ids

    def _add_ids(self, part: Part) -> None:
        for parsed in read_part(part):
            row = parsed.row
            is_late = (row.get('iter') or 0) >= self._end_of(parsed.attempt)
            if is_late and row.get('kind') != 'start':
                self._ids.add((parsed.attempt, row.get('id')))

    def _end_of(self, attempt: int) -> float:
        """Return the first iteration that a later attempt repeated, or inf."""
        # The result is cached, because it is needed for every row.
        if attempt not in self._ends:
            end = math.inf
            for part in self._parts:
                if part.attempt > attempt and part.first is not None:
                    end = min(end, part.first)
            self._ends[attempt] = end
        return self._ends[attempt]


def files_of(work_dir: str) -> List[Path]:
    """Return the event files of a work dir, by time."""
    path = Path(work_dir)
    if path.is_file():
        return [path]
    # The folder may be that of a single start.
    return events_files(work_dir) or sorted(path.glob(EVENTS_FILE))


def work_dirs_below(folder: str) -> List[str]:
    """Return work dirs that lie deeper in a folder, such as 'work_dirs'.

    A fire drill makes such folders, too. The work dir that was written last
    comes first.
    """
    files: List[Path] = []
    for depth in DEPTHS:
        files.extend(Path(folder).glob('*/' * depth + EVENTS_FILE))
    files.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    # A work dir with several starts has several files.
    return list(dict.fromkeys(str(file.parents[2]) for file in files))


def parts_of(path: Path) -> Iterator[Part]:
    """Yield the parts of one file, in their order."""
    parts = split_at_starts(path)
    has_run = False
    for part in parts:
        # The first row that names a run decides the run of the whole part.
        parsed = next(read_part(part), None)
        if parsed is not None:
            has_run = True
            yield part._replace(run=parsed.run, attempt=parsed.attempt)
    if parts[-1].end and not has_run:
        # No part was yielded, so no later reading warns of damaged lines.
        for _ in read_part(parts[0], warns=True):
            pass
        warn(path, 'no row names its run, all are left out')


def split_at_starts(path: Path) -> List[Part]:
    """Return the parts of a file; run and attempt are not set yet."""
    # The rows before the first start are a part as well: the start may be
    # damaged.
    parts = [Part(path, 0, 0, line=1)]
    size = 0
    with path.open('rb') as file:
        for number, line in enumerate(file, 1):
            # Parsing is slow, and only few of a million rows are starts.
            row = None
            if b'"start"' in line:
                row = parse(line)
            if row is not None and row.get('kind') == 'start':
                parts[-1] = parts[-1]._replace(end=size)
                first = row.get('iter')
                parts.append(Part(path, size, size, number, first=first))
            size += len(line)
    parts[-1] = parts[-1]._replace(end=size)
    return parts


def read_part(
    part: Part, on_bytes: OnBytes = lambda num: None, warns: bool = False
) -> Iterator[ParsedRow]:
    """Yield the rows of a part.

    A row without run and attempt gets those of the row before it. Such rows
    at the beginning of a part get those of the first row that has them. If
    no row has them, nothing is yielded.

    Args:
        part: The part to read.
        on_bytes: Called with the number of bytes of each line that is read.
        warns: Whether damaged lines are logged.
    """
    names: Optional[Row] = None
    early: List[Row] = []  # rows before the first that names its run
    place, damaged = part.begin, []
    with part.path.open('rb') as file:
        file.seek(place)
        # Lines are read as bytes: offsets count bytes, and a killed process
        # may have left half a character, which cannot be decoded.
        for number, line in enumerate(file, part.line):
            if place >= part.end:
                break
            place += len(line)
            on_bytes(len(line))
            row = parse(line)
            if row is None:
                # An empty line is no damage.
                if line != b'\n':
                    damaged.append(number)
                continue
            if has_names(row):
                names = row
                for early_row in early:
                    yield ParsedRow(row['run'], row['attempt'], early_row)
                early = []
            if names is None:
                early.append(row)
            else:
                yield ParsedRow(names['run'], names['attempt'], row)
    if warns:
        warn_of_lines(part.path, damaged)


def has_names(row: Row) -> bool:
    """Whether a row names its run and attempt."""
    return row.get('run') is not None and row.get('attempt') is not None


def warn_of_lines(path: Path, damaged: Sequence[int]) -> None:
    """Warn of damaged lines of a file, given by number."""
    # A file that is not a log would otherwise fill the console.
    for number in damaged[:MAX_WARNED]:
        warn(path, f'line {number}, half-written or damaged, is left out')
    if len(damaged) > MAX_WARNED:
        warn(path, f'so are {len(damaged) - MAX_WARNED} lines more')


def warn(path: Path, message: str) -> None:
    """Log a warning about a file."""
    logging.getLogger('mmnanguard').warning('%s: %s', path, message)
