import os
from contextlib import contextmanager
from typing import Any, Iterator

from mmengine.fileio import LocalBackend

__all__ = ['whole_files', 'written_aside']


@contextmanager
def written_aside(path: Any) -> Iterator[str]:
    """A name to write to, renamed to ``path`` at the end: no reader ever sees
    half a file there, and an error leaves none.
    """
    aside = f'{path}.partial'
    try:
        yield aside
        os.replace(aside, path)
    finally:
        if os.path.exists(aside):
            os.unlink(aside)


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
