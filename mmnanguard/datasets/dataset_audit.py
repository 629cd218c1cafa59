"""Walks a dataset once, in as many starts and processes as it takes."""

import json
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping

from torch.utils.data import DataLoader

from mmnanguard.core import GuardConfigError
from mmnanguard.core.rows.json_numbers import to_json

from .audited_dataset import AuditedDataset

__all__ = ['audit', 'read_rows']

CHUNK = 16  # samples that a worker does before it hands them over


def audit(
    dataset: AuditedDataset,
    facts: Mapping[str, Any],
    folder: Path,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    on_rows: Callable[[List[dict]], None] = lambda rows: None,
) -> bool:
    """Add the rows of this rank's samples that are not yet there.

    Rows are appended as they come, each rank to a file of its own. Ranks do
    not talk to one another: the one that ends last finds all rows.

    Args:
        dataset: Gives the rows.
        facts: What they depend on; a folder holds rows of the same facts.
        folder: Of the rows.
        num_workers: Processes that load samples beside this one.
        rank: Does each sample whose index is this one, modulo world_size.
        world_size: Number of ranks.
        on_rows: Called with new rows, and first of all with those that are
            there already, of this rank.

    Returns:
        Are the rows of all samples there now?

    Raises:
        GuardConfigError: If the folder holds an audit of something else, or
            samples lack what they are checked for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    head = json.loads(to_json({'schema': 1, **facts}))
    done = read_rows(folder, head)
    own = range(rank, len(dataset), world_size)
    on_rows([done[index] for index in own if index in done])
    rest = [index for index in own if index not in done]
    if rest:
        loader = DataLoader(
            dataset,
            batch_size=CHUNK,
            # None, a look for the keys, goes to a worker as well: a file that
            # a dataset opens with its first sample may not outlive a fork.
            sampler=[None, *rest],
            num_workers=num_workers,
            collate_fn=list,
        )
        with (folder / f'rows_rank{rank}.jsonl').open('ab') as file:
            # Ends what a killed process may have left of its last line.
            start = b'\n' + as_line(head)
            for found in loader:
                rows = [row for row in found if row is not None]
                for row in rows:
                    if isinstance(row, GuardConfigError):
                        raise row
                file.write(start + b''.join(map(as_line, rows)))
                file.flush()
                on_rows(rows)
                start = b''
        done = read_rows(folder, head)
    return len(done) == len(dataset)


def as_line(row: Mapping[str, Any]) -> bytes:
    return to_json(row).encode('utf-8', 'backslashreplace') + b'\n'


def read_rows(folder: Path, head: Mapping[str, Any]) -> Dict[int, dict]:
    """By index, of all ranks.

    Raises:
        GuardConfigError: If they are of an audit of something else.
    """
    rows = {}
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


def read_lines(path: Path) -> Iterator[dict]:
    for line in path.read_bytes().split(b'\n'):
        try:
            yield json.loads(line)
        except ValueError:  # half-written by a process that was killed
            continue
