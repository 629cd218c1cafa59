"""Norms of many tensors at a time."""

import math
from operator import attrgetter
from typing import Sequence

import torch
from torch import Tensor

__all__ = ['tensor_norms']

DTYPE = attrgetter('dtype')
# The argument dtype of _foreach_norm is newer than PyTorch 2.1.
HAS_NORM_DTYPE = 'dtype' in str(torch.ops.aten._foreach_norm.Scalar._schema)


def tensor_norms(
    tensors: Sequence[Tensor], norm_type: float
) -> Sequence[Tensor]:
    """Return the norm of each tensor, as 0-dim tensors; no sync.

    Norms are accumulated in float32, because half-precision tensors of
    moderate size have norms beyond float16. Powers other than 1, 2 and inf
    could overflow float32 and are accumulated in float64.

    Args:
        tensors: Tensors of floating-point types.
        norm_type: The power. With 2, finite elements above 1.8e19 give inf
            as well. With inf only non-finite elements do, but on a CPU that
            takes ten times as long.
    """
    dtype = torch.float32
    if norm_type not in (1.0, 2.0, math.inf):
        dtype = torch.float64
    dtypes = set(map(DTYPE, tensors))
    # The usual case, a model in float32, takes no loop over its tensors.
    # _foreach_norm refuses an empty list.
    if dtypes == {dtype}:
        return list(torch._foreach_norm(list(tensors), norm_type))
    if HAS_NORM_DTYPE and dtypes == {torch.bfloat16}:
        return list(torch._foreach_norm(list(tensors), norm_type, dtype=dtype))
    # Without dtype, _foreach_norm accumulates in the tensors' own type.
    plain = [tensor for tensor in tensors if tensor.dtype is dtype]
    norms = iter(torch._foreach_norm(plain, norm_type) if plain else ())
    result = []
    for tensor in tensors:
        if tensor.dtype is dtype:
            result.append(next(norms))
            continue
        # A float64 tensor keeps its precision where float32 would do.
        wide = torch.promote_types(tensor.dtype, dtype)
        result.append(torch.linalg.vector_norm(tensor, norm_type, dtype=wide))
    return result
