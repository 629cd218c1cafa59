import os
from contextlib import contextmanager
from typing import Any, Iterator

from mmengine.fileio import LocalBackend

__all__ = ['whole_files']


@contextmanager
def whole_files() -> Iterator[None]:
    """Within it MMEngine writes local files beside their place and renames
    them when they are complete: a process that is killed leaves no half one
    under its name. Other backends write as they do.
    """
    put = LocalBackend.put

    def put_whole(self: Any, obj: bytes, filepath: Any) -> None:
        aside = f'{filepath}.partial'
        put(self, obj, aside)
        os.replace(aside, filepath)

    LocalBackend.put = put_whole
    try:
        yield
    finally:
        LocalBackend.put = put
