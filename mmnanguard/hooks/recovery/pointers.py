"""Pointers: files of the work dir that name a checkpoint to resume from."""

import os
from pathlib import Path
from typing import Dict, Optional, Tuple

from mmengine.fileio import LocalBackend, get_file_backend

from mmnanguard._support.atomic_write import atomic_write
from mmnanguard.numerics.checkpoints.checkpoint_file import (
    CheckpointFile,
    judge_files,
    scan_file,
)

__all__ = ['LAST_CLEAN', 'choose_resume', 'read_pointer', 'write_pointer']

# MMEngine's pointer, which CheckpointHook writes after each save:
# https://github.com/open-mmlab/mmengine/blob/v0.10.7/mmengine/hooks/checkpoint_hook.py#L459
LAST = 'last_checkpoint'
LAST_CLEAN = 'last_clean_checkpoint'


def write_pointer(work_dir: str, name: str, target: str) -> None:
    """Write the path of a checkpoint to a pointer, atomically."""
    with atomic_write(os.path.join(work_dir, name)) as partial_path:
        # The bytes of a path need not be UTF-8.
        Path(partial_path).write_bytes(os.fsencode(target))


def read_pointer(work_dir: str, name: str) -> Optional[str]:
    """Return the path that a pointer names, or None."""
    try:
        target = os.fsdecode(Path(work_dir, name).read_bytes())
    except OSError:  # there is none, or it cannot be read
        return None
    # A process that was killed may leave MMEngine's pointer empty.
    return target.strip() or None


def choose_resume(work_dir: str) -> Tuple[Optional[str], str]:
    """Choose the last clean checkpoint if MMEngine's choice is bad.

    Reads the newest checkpoint, and the last clean checkpoint if that is
    another file. Call it before training, and after
    ``allow_mmengine_checkpoints``.

    Returns:
        The path of the last clean checkpoint if the newest is bad, unreadable
        or missing, else None, which leaves the choice to MMEngine; and a
        message for the user, which may be empty.
    """
    last = read_pointer(work_dir, LAST)
    clean = read_pointer(work_dir, LAST_CLEAN)
    # scan_file reads local files only, but a pointer may name a file of
    # another backend.
    if clean is None or not all(map(is_local, [last or '', clean])):
        return None, ''
    if last is None:
        return clean, f'{LAST} names no checkpoint: resuming from {clean}'
    files = scan_together(last, clean)
    newest = files[str(Path(last))]
    if newest.status == 'clean':
        return None, ''
    why = newest.reason
    if newest.status == 'bad':
        first = newest.scan.findings[0]
        why = f"'{first.name}' ({first.part}) is {first.kind}"
    story = f'the newest checkpoint, {last}, is {newest.status} ({why})'
    # The file was clean when it was written, and may be damaged by now.
    if clean == last or files[str(Path(clean))].status != 'clean':
        return None, (
            f'{story}, and no other is known to be clean; '
            f'python -m mmnanguard scan_checkpoints {work_dir} looks at all'
        )
    return clean, f'{story}: resuming from the last clean one, {clean}'


def scan_together(*paths: str) -> Dict[str, CheckpointFile]:
    """Scan checkpoints and judge them together; return them by path."""
    # A mask of -inf is recognized by comparison with the other files.
    unique = map(Path, dict.fromkeys(paths))
    files = {}
    for file in judge_files(list(map(scan_file, unique))):
        files[str(file.path)] = file
    return files


def is_local(path: str) -> bool:
    """Whether a path is that of a local file."""
    return isinstance(get_file_backend(path), LocalBackend)
