"""The walk over all samples of a dataset, resumable and by many processes."""

import json
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping

from torch.utils.data import DataLoader

from mmnanguard.core import GuardConfigError
from mmnanguard.core.rows.json_numbers import to_json

from .audited_dataset import AuditedDataset, Row

__all__ = ['audit', 'read_rows']

CHUNK = 16  # samples that a worker process handles at a time


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
        facts: The settings that the rows depend on; all rows of a folder
            have the same.
        folder: The folder of the rows, created if it does not exist.
        num_workers: Number of processes that load samples beside this one.
        rank: This rank, which handles the samples whose index is equal to
            it, modulo ``world_size``.
        world_size: Number of ranks.
        on_rows: Called with new rows, and first with the rows of this rank
            that the folder has already.

    Returns:
        Whether the folder has the rows of all samples now.

    Raises:
        GuardConfigError: If the folder holds an audit with other facts, or
            samples lack the keys that the checks need.
    """
    folder.mkdir(parents=True, exist_ok=True)
    head = json.loads(to_json({'schema': 1, **facts}))
    done = read_rows(folder, head)
    indices = range(rank, len(dataset), world_size)
    on_rows([done[index] for index in indices if index in done])
    rest = [index for index in indices if index not in done]
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
        with (folder / f'rows_rank{rank}.jsonl').open('ab') as file:
            # The line break ends a line that a killed process left half.
            start = b'\n' + as_line(head)
            for results in loader:
                rows = []
                for result in results:
                    if isinstance(result, GuardConfigError):
                        raise result
                    if result is not None:
                        rows.append(result)
                file.write(start + b''.join(map(as_line, rows)))
                file.flush()
                on_rows(rows)
                start = b''
        done = read_rows(folder, head)
    return len(done) == len(dataset)


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
            if 'index' in row:
                rows[row['index']] = row
                continue
            other = [key for key in head if row.get(key) != head[key]]
            if other:
                key = other[0]
                raise GuardConfigError(
                    f'{folder} holds an audit with another {key}: '
                    f'{row.get(key)!r}, not {head[key]!r}. Name another '
                    'folder, or remove this one.'
                )
    return dict(sorted(rows.items()))


def read_lines(path: Path) -> Iterator[Any]:
    """Yield the JSON value of each complete line."""
    for line in path.read_bytes().split(b'\n'):
        try:
            yield json.loads(line)
        except ValueError:
            # It is empty, or a killed process left it half-written.
            continue
