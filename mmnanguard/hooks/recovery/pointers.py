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
