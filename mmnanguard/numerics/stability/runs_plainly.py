"""The question whether an operation runs at once, on the numbers it gets."""

import torch
from torch._C._functorch import peek_interpreter_stack

__all__ = ['runs_plainly']


def runs_plainly() -> bool:
    """Whether operations are neither recorded nor transformed.

    Within ``torch.func``, tensors stand for other ones. In a trace or in the
    capture of a CUDA graph, a measurement would become a part of the model.
    """
    if peek_interpreter_stack() is not None:
        return False
    if torch._C._get_tracing_state() is not None:
        return False
    return not (
        torch.cuda.is_initialized()
        and torch.cuda.is_current_stream_capturing()
    )
