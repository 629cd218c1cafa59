import os
from pathlib import Path
from typing import List, Optional, Tuple

from mmengine.fileio import LocalBackend, get_file_backend

from mmnanguard._support.atomic_write import atomic_write
from mmnanguard.numerics.checkpoints.checkpoint_file import (
    CheckpointFile,
    judge_files,
    scan_file,
)

__all__ = ['LAST_CLEAN', 'choose_resume', 'read_pointer', 'write_pointer']

LAST = 'last_checkpoint'  # MMEngine's
LAST_CLEAN = 'last_clean_checkpoint'


def write_pointer(work_dir: str, name: str, target: str) -> None:
    """Let a file of the work dir name a checkpoint, as MMEngine's
    'last_checkpoint' does; it is never seen half-written.
    """
    with atomic_write(os.path.join(work_dir, name)) as aside:
        Path(aside).write_text(target)


def read_pointer(work_dir: str, name: str) -> Optional[str]:
    path = Path(work_dir, name)
    return (path.read_text().strip() or None) if path.exists() else None


def choose_resume(work_dir: str) -> Tuple[Optional[str], str]:
    """Which checkpoint to resume from in place of MMEngine's choice.

    Reads the newest checkpoint, and the last clean one if it is another. To
    be called before training, with ``allow_mmengine_checkpoints``.

    Returns:
        The last clean checkpoint if the newest is bad, unreadable or gone,
        else None: MMEngine's choice stands. And what to say about it, if
        anything.
    """
    last = read_pointer(work_dir, LAST)
    clean = read_pointer(work_dir, LAST_CLEAN)
    if clean is None or not all(map(is_local, [last or '', clean])):
        return None, ''
    if last is None:
        return clean, f'{LAST} names no checkpoint: resuming from {clean}'
    paths = dict.fromkeys([last, clean])
    files: List[CheckpointFile] = judge_files(
        [scan_file(Path(p)) for p in paths]
    )
    seen = {str(file.path): file for file in files}
    newest = seen[str(Path(last))]
    if newest.status == 'clean':
        return None, ''
    why = newest.reason
    if newest.status == 'bad':
        first = newest.scan.findings[0]
        why = f"'{first.name}' ({first.part}) is {first.kind}"
    story = f'the newest checkpoint, {last}, is {newest.status} ({why})'
    if clean == last or seen[str(Path(clean))].status != 'clean':
        return None, (
            f'{story}, and no other is known to be clean; '
            f'python -m mmnanguard scan_checkpoints {work_dir} looks at all'
        )
    return clean, f'{story}: resuming from the last clean one, {clean}'


def is_local(path: str) -> bool:
    return isinstance(get_file_backend(path), LocalBackend)
