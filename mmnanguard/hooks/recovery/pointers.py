"""Pointers: files of the work dir that name a checkpoint to resume from."""

import os
from pathlib import Path
from typing import Optional

from mmnanguard._support.atomic_write import atomic_write

__all__ = ['LAST', 'LAST_CLEAN', 'read_pointer', 'write_pointer']

# MMEngine's pointer, which CheckpointHook writes after each save:
# https://github.com/open-mmlab/mmengine/blob/v0.10.7/mmengine/hooks/checkpoint_hook.py#L459
LAST = 'last_checkpoint'
LAST_CLEAN = 'last_clean_checkpoint'


def write_pointer(work_dir: str, name: str, target: str) -> None:
    """Write the path of a checkpoint to a pointer, atomically."""
    with atomic_write(os.path.join(work_dir, name)) as partial_path:
        Path(partial_path).write_text(target)


def read_pointer(work_dir: str, name: str) -> Optional[str]:
    """Return the path that a pointer names, or None."""
    path = Path(work_dir, name)
    if not path.exists():
        return None
    # A process that was killed may leave MMEngine's pointer empty.
    return path.read_text().strip() or None
