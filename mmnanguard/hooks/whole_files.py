from contextlib import contextmanager
from typing import Any, Iterator

from mmengine.fileio import LocalBackend

from mmnanguard.core import written_aside

__all__ = ['whole_files']


@contextmanager
def whole_files() -> Iterator[None]:
    """Within it MMEngine writes local files beside their place and renames
    them when they are complete: a process that is killed leaves no half one
    under its name. Other backends write as they do.
    """
    put = LocalBackend.put

    def put_whole(self: Any, obj: bytes, filepath: Any) -> None:
        with written_aside(filepath) as aside:
            put(self, obj, aside)

    LocalBackend.put = put_whole
    try:
        yield
    finally:
        LocalBackend.put = put
