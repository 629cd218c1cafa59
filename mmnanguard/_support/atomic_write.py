"""A write to a file that readers see as a whole or not at all."""

import os
from contextlib import contextmanager
from typing import Iterator, Union

__all__ = ['atomic_write']


@contextmanager
def atomic_write(path: Union[str, 'os.PathLike[str]']) -> Iterator[str]:
    """Yield the path of a temporary file that becomes ``path`` at the end.

    No reader ever sees half a file, and an error leaves ``path`` as it was
    and no temporary file.

    Args:
        path: The file to write; its folder must exist.
    """
    aside = f'{path}.partial'
    try:
        yield aside
        os.replace(aside, path)
    finally:
        if os.path.exists(aside):
            os.unlink(aside)
