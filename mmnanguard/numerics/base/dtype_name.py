"""The names of dtypes in rows, dumps, configs and messages."""

import torch

__all__ = ['dtype_name']


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name without 'torch.', such as 'float16'.

    ``getattr(torch, name)`` is the dtype again.
    """
    return str(dtype).replace('torch.', '')
