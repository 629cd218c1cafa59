import math
from typing import Sequence

import torch
from torch import Tensor

__all__ = ['tensor_norms']


def tensor_norms(
    tensors: Sequence[Tensor], norm_type: float
) -> Sequence[Tensor]:
    """One norm per tensor, accumulated in float32, or in float64 for the
    powers that would overflow it; no sync.

    Half-precision tensors of moderate size have norms beyond float16.

    Args:
        tensors: Of floating-point types.
        norm_type: With 2, finite elements above 1.8e19 give inf, too; with
            inf only non-finite ones do, which on a CPU takes ten times as
            long.
    """
    dtype = torch.float32
    if norm_type not in (1.0, 2.0, math.inf):
        dtype = torch.float64
    plain = [tensor for tensor in tensors if tensor.dtype is dtype]
    norms = iter(torch._foreach_norm(plain, norm_type) if plain else ())
    if len(plain) == len(tensors):
        return list(norms)
    return [
        next(norms)
        if tensor.dtype is dtype
        else torch.linalg.vector_norm(
            tensor, norm_type, dtype=torch.promote_types(tensor.dtype, dtype)
        )
        for tensor in tensors
    ]
