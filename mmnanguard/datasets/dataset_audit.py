"""The visit of all samples of a dataset, resumable and in many processes."""

import json
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Union,
)

from torch.utils.data import DataLoader

from mmnanguard.core import GuardConfigError
from mmnanguard.core.rows.json_numbers import to_json

from .audited_dataset import AuditedDataset, Row

__all__ = ['audit', 'read_rows']

CHUNK = 16  # samples that a worker process handles at a time
# The rows of a chunk; an error in place of a row, None in place of no row.
Results = List[Union[Row, GuardConfigError, None]]


def audit(
    dataset: AuditedDataset,
    facts: Mapping[str, object],
    folder: Path,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    on_rows: Callable[[List[Row]], None] = lambda rows: None,
) -> bool:
    """Write the rows of this rank's samples that the folder does not have.

    Rows are appended as they come, each rank to a separate file. Ranks do
    not communicate: the rank that ends last has all rows in the folder.

    Args:
        dataset: The dataset that returns the rows.
        facts: The settings that the rows depend on; they are equal for all
            rows of a folder.
        folder: The folder of the rows, created if it does not exist.
        num_workers: Number of processes that load samples beside this one.
        rank: This rank, which handles the samples whose index is equal to
            it, modulo ``world_size``.
        world_size: Number of ranks.
        on_rows: The function that is called with new rows, and at first with
            the rows of this rank that the folder has already.

    Returns:
        Whether the folder has the rows of all samples now.

    Raises:
        GuardConfigError: If the folder holds an audit with other facts, or
            samples lack the keys that the checks need.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Converted by JSON, which makes a list of a tuple, so that the head is
    # equal to a head that was read.
    head = json.loads(to_json({'schema': 1, **facts}))
    done = read_rows(folder, head)
    indices = range(rank, len(dataset), world_size)
    old_rows = []
    rest = []
    for index in indices:
        if index in done:
            old_rows.append(done[index])
        else:
            rest.append(index)
    on_rows(old_rows)
    if rest:
        loader = DataLoader(
            dataset,
            batch_size=CHUNK,
            # None, which checks the keys, goes to a worker as well: a file
            # that a dataset opens with its first sample may not survive a
            # fork.
            sampler=[None, *rest],
            num_workers=num_workers,
            collate_fn=list,
        )
        write_rows(loader, head, folder / f'rows_rank{rank}.jsonl', on_rows)
        # Other ranks may have ended meanwhile.
        done = read_rows(folder, head)
    return len(done) == len(dataset)


def write_rows(
    loader: Iterable[Results],
    head: Mapping[str, object],
    path: Path,
    on_rows: Callable[[List[Row]], None],
) -> None:
    """Append the rows of a loader to a file, chunk by chunk.

    Args:
        loader: The loader of the rows.
        head: The first line of the file: the facts.
        path: The path of the file.
        on_rows: The function that is called with the rows of each chunk.

    Raises:
        GuardConfigError: If the loader has an error in place of a row.
    """
    with path.open('ab') as file:
        # The line break ends a line that a killed process left half.
        start = b'\n' + as_line(head)
        for results in loader:
            rows = []
            for result in results:
                if isinstance(result, GuardConfigError):
                    raise result
                # None is the answer of the check of the keys.
                if result is not None:
                    rows.append(result)
            file.write(start + b''.join(map(as_line, rows)))
            # A process that is killed loses at most the chunk in progress.
            file.flush()
            on_rows(rows)
            start = b''


def as_line(row: Mapping[str, object]) -> bytes:
    """Return a row as a line of a file."""
    return to_json(row).encode('utf-8', 'backslashreplace') + b'\n'


def read_rows(folder: Path, head: Mapping[str, object]) -> Dict[int, Row]:
    """Return the rows of all ranks, by index and in this order.

    Args:
        folder: The folder of an audit.
        head: The first line that each of its files must have: the facts.

    Raises:
        GuardConfigError: If the folder holds an audit with other facts.
    """
    rows: Dict[int, Row] = {}
    for path in sorted(folder.glob('rows_rank*.jsonl')):
        for row in read_lines(path):
            # All other lines are heads: a resumed audit writes another one.
            if 'index' in row:
                rows[row['index']] = row
            else:
                check_head(row, head, folder)
    # Each file has the rows of one rank, so the indices are not in order.
    return dict(sorted(rows.items()))


def check_head(
    row: Mapping[str, object], head: Mapping[str, object], folder: Path
) -> None:
    """Refuse rows that were written with other settings.

    Args:
        row: A head that was read from the folder.
        head: The head of this audit.
        folder: The folder, for the message.

    Raises:
        GuardConfigError: If the two heads differ.
    """
    for key, value in head.items():
        if row.get(key) != value:
            raise GuardConfigError(
                f'{folder} holds an audit with another {key}: '
                f'{row.get(key)!r}, not {value!r}. Name another '
                'folder, or remove this one.'
            )


def read_lines(path: Path) -> Iterator[Any]:
    """Yield the JSON value of each complete line."""
    for line in path.read_bytes().split(b'\n'):
        try:
            yield json.loads(line)
        except ValueError:
            # The line is empty, or a killed process left it half-written.
            continue
