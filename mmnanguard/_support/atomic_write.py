"""A write to a file that readers see as a whole or not at all."""

import os
from contextlib import contextmanager
from typing import Iterator, Union

__all__ = ['atomic_write']


@contextmanager
def atomic_write(path: Union[str, 'os.PathLike[str]']) -> Iterator[str]:
    """Yield the path of a temporary file that becomes ``path`` at the end.

    No reader ever sees half a file. After an error ``path`` is as it was
    before, and the temporary file is gone.

    Args:
        path: The file to write; its folder must exist.
    """
    # In the folder of ``path``: a rename is atomic within a file system only.
    temporary = f'{path}.partial'
    try:
        yield temporary
        # Unlike os.rename, it replaces an existing file on Windows, too.
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
