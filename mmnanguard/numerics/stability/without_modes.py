"""Operations of a measurement, which no mode may see."""

from contextlib import contextmanager
from typing import Iterator

import torch
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ['without_modes']


@contextmanager
def without_modes() -> Iterator[None]:
    """Hide operations from all modes: the user's, and the monitor's own.

    Each call of a mode costs more than most of these operations.
    """
    with torch._C.DisableTorchFunction():
        if torch._C._len_torch_dispatch_stack():
            with _disable_current_modes():
                yield
        else:
            yield
