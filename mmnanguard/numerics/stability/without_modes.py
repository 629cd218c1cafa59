"""Operations of a measurement, which no mode may see."""

from contextlib import ExitStack
from typing import ContextManager

import torch
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ['without_modes']


def without_modes() -> ContextManager[object]:
    """Hide operations from all modes: the user's, and the monitor's own.

    A call of a mode takes longer than many of these operations.

    Returns:
        A context for a ``with`` statement, which has to follow at once.
    """
    hidden = torch._C.DisableTorchFunction()
    # The usual case is without such modes, and to disable them is slow.
    if not torch._C._len_torch_dispatch_stack():
        return hidden
    stack = ExitStack()
    stack.enter_context(hidden)
    stack.enter_context(_disable_current_modes())
    return stack
