"""The rows of a run, as if it had never been interrupted."""

import json
import logging
import math
from functools import lru_cache
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
)

from mmnanguard.core import GuardConfigError
from mmnanguard.core.rows.event_files import EVENTS_FILE, events_files

__all__ = [
    'Part',
    'files_of',
    'find_parts',
    'iter_events',
    'read_events',
    'work_dirs_below',
]

DEPTHS = range(2, 5)  # folders above it, where to look for runs further down
MAX_WARNED = 3  # lines of a file
Row = Dict[str, Any]
OnBytes = Callable[[int], None]


class Part(NamedTuple):
    """The place in a file where one process start wrote its rows.

    Attributes:
        path: Of the file.
        begin: Its first byte there.
        end: The byte after its last one.
        line: Number of its first line, from 1.
        run: Names the run.
        attempt: Number of the start, from 1.
        first: Iteration that it ran first; None if the row that says it is
            lost.
    """

    path: Path
    begin: int
    end: int
    line: int
    run: str = ''
    attempt: int = 1
    first: Optional[int] = None


class ParsedRow(NamedTuple):
    """One row, and the process start that wrote it."""

    run: str
    attempt: int
    row: Row


def read_events(work_dir: str, run: Optional[str] = None) -> List[Row]:
    """All that one run told, as if it had never been interrupted.

    A process start ('attempt') of a run writes ``events.jsonl`` in a folder
    of its own, or, within one second of another, in the same. Here they are
    one list:

    - Attempts come in their order, the rows of each as they were written.
    - A later attempt starts from a checkpoint and may run iterations again.
      What earlier attempts told of those is dropped: the rows of these
      iterations and those joined to them by id. Rows of kind 'start', whose
      ``iter`` is the first that an attempt runs, all stay.
    - A row that names no run is of the attempt of the row before it. Ids are
      unique within an attempt only: join by id in what this returns.
    - A line that is no JSON object is left out, with a warning in the log: of
      a process that was killed, the last one may be half-written.

    Args:
        work_dir: Of the run; every folder in it is looked at. Or one
            ``events.jsonl``.
        run: Which one of several; None means the one that wrote last, by the
            names of the folders, which are times.

    Returns:
        Rows as they stand in the files, so that a non-finite number is the
        string 'nan', 'inf' or '-inf'. None if nothing was told.

    Raises:
        GuardConfigError: If there is no such run.
    """
    return list(iter_events(find_parts(work_dir, run)))


def find_parts(work_dir: str, run: Optional[str] = None) -> List[Part]:
    """Where the rows of a run stand, in order of attempts; arguments and
    errors are those of :func:`read_events`. Reads the files once, as bytes.
    """
    parts = [part for path in files_of(work_dir) for part in parts_of(path)]
    if not parts and run is None:
        return []
    run = parts[-1].run if run is None else run
    own = [part for part in parts if part.run == run]
    if not own:
        known = ', '.join(dict.fromkeys(repr(part.run) for part in parts))
        raise GuardConfigError(
            f'{work_dir} has no run {run!r}; known runs: {known or "none"}'
        )
    return sorted(own, key=lambda part: part.attempt)  # stable


def iter_events(
    parts: Sequence[Part], on_bytes: OnBytes = lambda num: None
) -> Iterator[Row]:
    """The rows of :func:`read_events` one by one, in little memory.

    Args:
        parts: Of one run, from :func:`find_parts`.
        on_bytes: Called with the number of bytes of each line that is read.
    """

    @lru_cache(None)
    def end_of(attempt: int) -> float:
        """The first iteration that a later attempt runs again."""
        later = [part for part in parts if part.attempt > attempt]
        firsts = [part.first for part in later if part.first is not None]
        return min(firsts, default=math.inf)

    # An autopsy may stand before the update that says its iteration.
    gone = {
        (told.attempt, told.row.get('id'))
        for part in parts
        if end_of(part.attempt) < math.inf
        for told in read_part(part)
        if told.row.get('kind') != 'start'
        and (told.row.get('iter') or 0) >= end_of(told.attempt)
    }
    for part in parts:
        for told in read_part(part, on_bytes, warns=True):
            row = told.row
            is_gone = (
                row['iter'] >= end_of(told.attempt)
                if row.get('iter') is not None
                else (told.attempt, row.get('id')) in gone
            )
            # Two runs may have begun within a second.
            is_own = told.run == part.run
            if is_own and (row.get('kind') == 'start' or not is_gone):
                yield row


def files_of(work_dir: str) -> List[Path]:
    path = Path(work_dir)
    if path.is_file():
        return [path]
    return events_files(work_dir) or sorted(path.glob(EVENTS_FILE))


def work_dirs_below(folder: str) -> List[str]:
    """Return work dirs that lie deeper in a folder, such as 'work_dirs'.

    A fire drill makes such folders too. The run that wrote last comes first.
    """
    files = [
        file
        for depth in DEPTHS
        for file in Path(folder).glob('*/' * depth + EVENTS_FILE)
    ]
    files.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    return list(dict.fromkeys(str(file.parents[2]) for file in files))


def parts_of(path: Path) -> Iterator[Part]:
    """Yield the parts of one file, in their order."""
    firsts: List[Optional[int]] = [None]
    parts = [Part(path, 0, 0, line=1)]
    size = 0
    with path.open('rb') as file:
        for number, line in enumerate(file, 1):
            row = parse(line) if b'"start"' in line else None
            if row is not None and row.get('kind') == 'start':
                parts[-1] = parts[-1]._replace(end=size)
                parts.append(Part(path, size, size, number))
                firsts.append(row.get('iter'))
            size += len(line)
    parts[-1] = parts[-1]._replace(end=size)
    is_told = False
    for part, first in zip(parts, firsts):
        told = next(read_part(part), None)
        if told is not None:
            is_told = True
            yield part._replace(
                run=told.run, attempt=told.attempt, first=first
            )
    if size and not is_told:
        for _ in read_part(parts[0], warns=True):
            pass
        warn(path, 'no row names its run, all are left out')


def read_part(
    part: Part, on_bytes: OnBytes = lambda num: None, warns: bool = False
) -> Iterator[ParsedRow]:
    """Each row with the run and attempt that it or the last one names."""
    names: Optional[Row] = None
    early: List[Row] = []  # rows before the first that names its run
    place, bad = part.begin, []
    with part.path.open('rb') as file:
        file.seek(place)
        # As bytes: half a character is the end of a line like any other, and
        # a line may hold what str.splitlines takes for its end.
        for number, line in enumerate(file, part.line):
            if place >= part.end:
                break
            place += len(line)
            on_bytes(len(line))
            row = parse(line)
            if row is None:
                bad += [number] * (line != b'\n')
                continue
            if 'run' in row and 'attempt' in row:
                names = row
                for each in early:
                    yield ParsedRow(row['run'], row['attempt'], each)
                early = []
            if names is None:
                early.append(row)
            else:
                yield ParsedRow(names['run'], names['attempt'], row)
    for number in bad[:MAX_WARNED] if warns else ():
        what = 'half-written or damaged, is left out'
        warn(part.path, f'line {number}, {what}')
    if warns and bad[MAX_WARNED:]:
        warn(part.path, f'so are {len(bad) - MAX_WARNED} lines more')


def parse(line: bytes) -> Optional[Row]:
    try:
        row = json.loads(line)
    except ValueError:  # of UnicodeDecodeError the base class as well
        return None
    return row if isinstance(row, dict) else None


def warn(path: Path, what: str) -> None:
    logging.getLogger('mmnanguard').warning('%s: %s', path, what)
