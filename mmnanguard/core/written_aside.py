import os
from contextlib import contextmanager
from typing import Any, Iterator

__all__ = ['written_aside']


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
