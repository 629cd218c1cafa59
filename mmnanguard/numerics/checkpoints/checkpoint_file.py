"""Checkpoint files, which are scanned and then compared with each other.

:func:`scan_file` reads a single file and never raises. :func:`judge_files`
compares all files of a run and calls each clean or bad.
"""

import re
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from .load_plain import check_form, load_plain
from .saved_optimizer import StateDict
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
            others, then 'clean' or 'bad'. A truncated file, for example, is
            'unreadable'; a file that MMEngine did not write is 'foreign'.
        reason: The reason why the file is unreadable or foreign.
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
        # The scan is emptied first, because asdict would copy all of it.
        row: Dict[str, object] = asdict(replace(self, scan=CheckpointScan()))
        del row['scan']
        row['path'] = str(self.path)
        row['findings'] = list(map(asdict, self.scan.findings))
        row['masks'] = [asdict(mask) for mask, _ in self.scan.masks]
        return row


class ForeignFileError(ValueError):
    """A readable file that is no checkpoint of MMEngine."""


def scan_file(path: Path, limit: float = ABSURD) -> CheckpointFile:
    """Scan a checkpoint on the CPU, whatever the file holds.

    No code of the file is run. Classes that the file needs besides tensors
    and builtins must have been allowed before (``mmnanguard.safe_load``).
    Tensors are mapped from the file where its format allows it, so that
    little memory is used. An error becomes the status of the result.

    Args:
        path: A file, or a folder of rank0.pth, rank1.pth and so on, as
            FSDP's 'local' format has it.
        limit: The largest absolute value of a sound weight; see
            :func:`scan_checkpoint`.
    """
    result = CheckpointFile(path, 'unreadable')
    try:
        result = replace(result, time=path.stat().st_mtime)
        if not path.is_dir():
            content = load(path)
            scan = scan_checkpoint(content, limit)
        else:
            scans = []
            for file in rank_files(path):
                content = load(file, is_sharded=True)
                scans.append(scan_checkpoint(content, limit))
            scan = join_ranks(scans)
        # All ranks save these facts alike, so the last file is used.
        result = replace(
            result,
            iter=iteration_of(content),
            has_optimizer=bool(content.get('optimizer')),
        )
        return replace(result, status='read', scan=scan)
    except ForeignFileError as error:
        return replace(result, status='foreign', reason=str(error))
    except Exception as error:  # a broken file may raise anything
        return replace(result, reason=reason_of(error))


def iteration_of(content: StateDict) -> Optional[int]:
    """Return the number of iterations before a checkpoint, or None."""
    meta = content.get('meta')
    if not isinstance(meta, Mapping):
        return None
    # The file may hold anything under this key.
    count = meta.get('iter')
    if not isinstance(count, int):
        return None
    return count


def load(file: Path, is_sharded: bool = False) -> StateDict:
    """Load a checkpoint file.

    Raises:
        ValueError: If the file is empty, truncated or no pickle.
        ForeignFileError: If the file has no ``state_dict``.
    """
    is_zip = check_form(file)
    with ExitStack() as stubs:
        # stub_missing_shards reads the names of classes from a zip file.
        if is_sharded and is_zip:
            stubs.enter_context(stub_missing_shards(file))
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
        ValueError: If the file of a rank is missing, or DeepSpeed wrote them.
    """
    ranks = []
    for path in folder.iterdir():
        match = re.fullmatch(r'rank(\d+)\.pth', path.name)
        if match:
            ranks.append(int(match[1]))
    # By number: as text, rank10 comes before rank2.
    ranks.sort()
    if not ranks and any(folder.glob('*model_states.pt')):
        raise ValueError(
            'a checkpoint of DeepSpeed, which is not scanned: StateAuditHook '
            'checks the state before it is saved'
        )
    if not ranks or ranks != list(range(len(ranks))):
        raise ValueError(f'a folder with the files of ranks {ranks}')
    return [folder / f'rank{rank}.pth' for rank in ranks]


def reason_of(error: Exception) -> str:
    """Return an error as a single line, without PyTorch's advice on trust.

    That advice is to load the file with ``weights_only=False``, which runs
    the code of the file.
    """
    lines = str(error).splitlines() or ['']
    reason = lines[0]
    for line in lines:
        # PyTorch puts the reason in the middle of its advice.
        if 'Unpickler error' in line:
            reason = line.split('Unpickler error: ')[-1]
            break
    reason = reason.split('. Please')[0]
    return f'{type(error).__name__}: {reason.strip()[:200]}'


def judge_files(files: Sequence[CheckpointFile]) -> List[CheckpointFile]:
    """Call each file clean or bad, and sort the files, oldest first.

    Masks are compared between all files. Files are sorted by iteration. A
    file without an iteration comes after all files that are not younger. If
    two files have the same iteration, a file that can be resumed counts as
    newer than a file that cannot.
    """

    def age(file: CheckpointFile) -> Tuple[int, bool, bool, float]:
        """Return the sort key of a file."""
        count = file.iter
        if count is None:
            count = 0
            for other in files:
                if other.time <= file.time:
                    count = max(count, other.iter or 0)
        return count, file.iter is None, file.has_optimizer, file.time

    judged = []
    scans = classify_masks(list(map(attrgetter('scan'), files)))
    for file, scan in zip(files, scans):
        file = replace(file, scan=scan)
        # An unreadable or foreign file has no findings and is not clean.
        if file.status == 'read':
            status = 'bad' if scan.findings else 'clean'
            file = replace(file, status=status)
        judged.append(file)
    return sorted(judged, key=age)
