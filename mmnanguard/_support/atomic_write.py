import os
from contextlib import contextmanager
from typing import Any, Iterator

__all__ = ['atomic_write']


@contextmanager
def atomic_write(path: Any) -> Iterator[str]:
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
