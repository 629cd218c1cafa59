from contextlib import contextmanager
from typing import Any, Iterator

from mmengine.fileio import LocalBackend

from mmnanguard._support.atomic_write import atomic_write

from .._shared.patches import replaced

__all__ = ['atomic_checkpoint_writes']


@contextmanager
def atomic_checkpoint_writes() -> Iterator[None]:
    """Within it MMEngine writes local files beside their place and renames
    them when they are complete: a process that is killed leaves no half one
    under its name. Other backends write as they do.
    """
    put = LocalBackend.put

    def put_whole(self: Any, obj: bytes, filepath: Any) -> None:
        with atomic_write(filepath) as aside:
            put(self, obj, aside)

    with replaced(LocalBackend, 'put', put_whole):
        yield
