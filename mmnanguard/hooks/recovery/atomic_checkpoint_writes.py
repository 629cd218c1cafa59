"""Local checkpoint files that appear as a whole or not at all."""

from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Union

from mmengine.fileio import LocalBackend

from mmnanguard._support.atomic_write import atomic_write

from .._shared.patches import replaced

__all__ = ['atomic_checkpoint_writes']


@contextmanager
def atomic_checkpoint_writes() -> Iterator[None]:
    """Let MMEngine write local files atomically within a ``with`` block.

    A file is written under a temporary name and renamed when it is complete,
    so a process that is killed leaves no partial file under the final name.
    Writes of other backends do not change.
    """
    put = LocalBackend.put

    def put_atomically(
        self: LocalBackend, obj: bytes, filepath: Union[str, Path]
    ) -> None:
        with atomic_write(filepath) as partial_path:
            put(self, obj, partial_path)

    # The class and not an object is patched, because MMEngine's
    # save_checkpoint makes a new backend for each file. It writes in place:
    # https://github.com/open-mmlab/mmengine/blob/v0.10.7/mmengine/fileio/backends/local_backend.py#L77
    with replaced(LocalBackend, 'put', put_atomically):
        yield
