"""The names of dtypes in rows, dumps, configs and messages."""

import torch

__all__ = ['dtype_name']


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without 'torch.', such as 'float16'.

    ``getattr(torch, name)`` returns the dtype.
    """
    return str(dtype).replace('torch.', '')
