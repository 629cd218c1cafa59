"""Local checkpoint files that appear as a whole or not at all."""

import errno
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, Optional, Union

from mmengine.fileio import LocalBackend

from mmnanguard._support.atomic_write import atomic_write

from .._shared.patches import replaced

__all__ = ['atomic_checkpoint_writes']


@contextmanager
def atomic_checkpoint_writes(
    make_room: Optional[Callable[[], bool]] = None,
) -> Iterator[None]:
    """Let MMEngine write local files atomically within a ``with`` block.

    A file is written under a temporary name and renamed when it is complete,
    so a process that is killed leaves no partial file under the final name.
    Writes of other backends do not change.

    Args:
        make_room: Called if the disk is full; returns whether it has removed
            a file, so that it is worth another try.
    """
    put = LocalBackend.put

    def put_atomically(
        self: LocalBackend, obj: bytes, filepath: Union[str, Path]
    ) -> None:
        try:
            with atomic_write(filepath) as partial_path:
                put(self, obj, partial_path)
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            if not is_full or make_room is None or not make_room():
                raise
            with atomic_write(filepath) as partial_path:
                put(self, obj, partial_path)

    # The class and not an object is patched, because MMEngine's
    # save_checkpoint makes a new backend for each file. It writes in place:
    # https://github.com/open-mmlab/mmengine/blob/v0.10.7/mmengine/fileio/backends/local_backend.py#L77
    with replaced(LocalBackend, 'put', put_atomically):
        yield
