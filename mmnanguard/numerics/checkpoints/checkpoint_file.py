"""Checkpoint files: scanned, and judged by comparison with one another."""

import re
import zipfile
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from .load_plain import load_plain
from .scan import (
    ABSURD,
    CheckpointScan,
    classify_masks,
    join_ranks,
    scan_checkpoint,
)
from .stubs import stub_missing_shards

__all__ = ['CheckpointFile', 'judge_files', 'scan_file']


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint on disk and the result of its scan.

    Attributes:
        path: A file, or a folder with one file per rank.
        status: 'read' until :func:`judge_files` has compared the file with
            others, then 'clean' or 'bad'. 'unreadable' is a file such as a
            truncated one, 'foreign' one that MMEngine did not write.
        reason: Why the file is unreadable or foreign.
        iter: Number of iterations before the checkpoint; None if not known.
        time: Time of the last modification, in seconds since 1970.
        has_optimizer: Whether training can be resumed from the file.
        scan: The joined scans of all ranks.
    """

    path: Path
    status: str
    reason: str = ''
    iter: Optional[int] = None
    time: float = 0.0
    has_optimizer: bool = False
    scan: CheckpointScan = field(default_factory=CheckpointScan)

    def to_dict(self) -> Dict[str, object]:
        """Return the record for JSON, in builtins only."""
        row: Dict[str, object] = asdict(replace(self, scan=CheckpointScan()))
        del row['scan']
        row['path'] = str(self.path)
        row['findings'] = [asdict(item) for item in self.scan.findings]
        row['masks'] = [asdict(mask) for mask, _ in self.scan.masks]
        return row


class ForeignFileError(ValueError):
    """A readable file that is no checkpoint of MMEngine."""


def scan_file(path: Path, limit: float = ABSURD) -> CheckpointFile:
    """Scan a checkpoint on the CPU. Never raises for what a file holds.

    No code of the file is run. Classes that the file needs besides tensors
    and builtins must have been allowed before (``mmnanguard.safe_load``).
    Tensors are mapped from the file where its format allows it, so that
    little memory is used.

    Args:
        path: A file, or a folder of rank0.pth, rank1.pth and so on, as
            FSDP's 'local' format has it.
        limit: See :func:`scan_checkpoint`.
    """
    seen = CheckpointFile(path, 'unreadable')
    try:
        seen = replace(seen, time=path.stat().st_mtime)
        scans = []
        for file in rank_files(path) if path.is_dir() else [path]:
            content = load(file, is_sharded=path.is_dir())
            scans.append(scan_checkpoint(content, limit))
            meta = content.get('meta')
            count = meta.get('iter') if isinstance(meta, Mapping) else None
            seen = replace(
                seen,
                iter=count if isinstance(count, int) else None,
                has_optimizer=bool(content.get('optimizer')),
            )
        scan = join_ranks(scans) if path.is_dir() else scans[0]
        return replace(seen, status='read', scan=scan)
    except ForeignFileError as error:
        return replace(seen, status='foreign', reason=str(error))
    except Exception as error:  # a broken file may raise anything
        return replace(seen, reason=reason_of(error))


def load(file: Path, is_sharded: bool) -> Mapping[str, Any]:
    """Load a checkpoint file.

    Raises:
        ValueError: If the file is empty, truncated or no pickle.
        ForeignFileError: If the file has no ``state_dict``.
    """
    with file.open('rb') as stream:
        head = stream.read(4)
    is_zip = zipfile.is_zipfile(file)
    if not head:
        raise ValueError('it is empty')
    if head == b'PK\3\4' and not is_zip:
        raise ValueError('it is truncated: its end is not that of a zip file')
    if not is_zip and head[:1] != b'\x80':
        raise ValueError('it is neither a zip file nor a pickle')
    is_sharded = is_sharded and is_zip
    with stub_missing_shards(file) if is_sharded else nullcontext():
        # PyTorch before 1.6 wrote no zip files, which mmap needs.
        content = load_plain(file, mmap=is_zip)
    if not isinstance(content, Mapping) or not isinstance(
        content.get('state_dict'), Mapping
    ):
        raise ForeignFileError('it has no state_dict')
    return content


def rank_files(folder: Path) -> List[Path]:
    """Return the files of all ranks in their order.

    Raises:
        ValueError: If the file of a rank is missing.
    """
    names = (path.name for path in folder.iterdir())
    matches = (re.fullmatch(r'rank(\d+)\.pth', name) for name in names)
    ranks = sorted(int(match[1]) for match in matches if match)
    if not ranks or ranks != list(range(len(ranks))):
        raise ValueError(f'a folder with the files of ranks {ranks}')
    return [folder / f'rank{rank}.pth' for rank in ranks]


def reason_of(error: Exception) -> str:
    """Return an error as one line, without PyTorch's advice on trust."""
    lines = str(error).splitlines() or ['']
    messages = [line for line in lines if 'Unpickler error' in line] or lines
    reason = messages[0].split('Unpickler error: ')[-1].split('. Please')[0]
    return f'{type(error).__name__}: {reason.strip()[:200]}'


def judge_files(files: Sequence[CheckpointFile]) -> List[CheckpointFile]:
    """Call each file clean or bad, and sort the files, oldest first.

    Masks are compared between all files. Files are sorted by iteration. A
    file without an iteration comes after all files that are not younger. Of
    two files of one iteration, a file that can be resumed is the newer one.
    """

    def age(file: CheckpointFile) -> Tuple[int, bool, bool, float]:
        count = file.iter
        if count is None:
            older = [f.iter or 0 for f in files if f.time <= file.time]
            count = max(older)
        return count, file.iter is None, file.has_optimizer, file.time

    judged = []
    scans = classify_masks([file.scan for file in files])
    for file, scan in zip(files, scans):
        status = file.status
        if status == 'read':
            status = 'bad' if scan.findings else 'clean'
        judged.append(replace(file, status=status, scan=scan))
    return sorted(judged, key=age)
