import json
import logging
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

from mmnanguard.core import GuardConfigError

__all__ = ['read_events']

FILES = '*/nanguard/events.jsonl'
Row = Dict[str, Any]


class Told(NamedTuple):
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
        work_dir: Of the run; every folder in it is looked at.
        run: Which one of several; None means the one that wrote last, by the
            names of the folders, which are times.

    Returns:
        Rows as they stand in the files, so that a non-finite number is the
        string 'nan', 'inf' or '-inf'. None if nothing was told.

    Raises:
        GuardConfigError: If there is no such run.
    """
    told = [
        each
        for path in sorted(Path(work_dir).glob(FILES))
        for each in attributed(list(read_lines(path)), path)
    ]
    if not told and run is None:
        return []
    if run is None:
        run = told[-1].run
    found = [each for each in told if each.run == run]
    if not found:
        known = ', '.join(dict.fromkeys(repr(each.run) for each in told))
        raise GuardConfigError(
            f'{work_dir} has no run {run!r}; known runs: {known or "none"}'
        )
    found.sort(key=lambda each: each.attempt)  # stable
    return without_reruns(found)


def read_lines(path: Path) -> Iterator[Row]:
    # As bytes: half a character is the end of a line like any other, and a
    # line may hold what str.splitlines takes for its end.
    for number, line in enumerate(path.read_bytes().split(b'\n'), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except ValueError:  # of UnicodeDecodeError the base class as well
            row = None
        if isinstance(row, dict):
            yield row
        else:
            warn(path, f'line {number}, half-written or damaged, is left out')


def attributed(rows: List[Row], path: Path) -> Iterator[Told]:
    """Each row of a file with its run and attempt."""
    named = [row for row in rows if 'run' in row and 'attempt' in row]
    if not named:
        if rows:
            warn(path, 'no row names its run, all are left out')
        return
    names = named[0]
    for row in rows:
        if 'run' in row and 'attempt' in row:
            names = row
        yield Told(names['run'], names['attempt'], row)


def without_reruns(told: List[Told]) -> List[Row]:
    """Those of one run, in order of attempts."""
    iters: Dict[Any, int] = {}
    first: Dict[int, int] = {}
    for _, attempt, row in told:
        if 'iter' not in row:
            continue
        if row.get('kind') == 'start':
            first[attempt] = row['iter']
        else:
            iters.setdefault((attempt, row.get('id')), row['iter'])

    def is_kept(attempt: int, row: Row) -> bool:
        if row.get('kind') == 'start':
            return True
        iter_ = row.get('iter', iters.get((attempt, row.get('id'))))
        return iter_ is None or not any(
            iter_ >= start for later, start in first.items() if later > attempt
        )

    return [row for _, attempt, row in told if is_kept(attempt, row)]


def warn(path: Path, what: str) -> None:
    logging.getLogger('mmnanguard').warning('%s: %s', path, what)
