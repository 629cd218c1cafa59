"""Multi-tensor kernels, with a loop where PyTorch has none."""

from itertools import repeat
from typing import Sequence, Union

import torch
from torch import Tensor

__all__ = ['in_place']


def in_place(
    name: str,
    tensors: Sequence[Tensor],
    values: Union[float, Sequence[Tensor]],
) -> None:
    """Call ``torch._foreach_{name}_``, or change tensors one by one.

    PyTorch 2.1 does not implement these kernels for sparse tensors.

    Args:
        name: The name of the operation, such as 'mul'.
        tensors: The tensors, which are changed in place.
        values: The operand: one number for all, or one tensor for each.
    """
    try:
        getattr(torch, f'_foreach_{name}_')(tensors, values)
    except NotImplementedError:
        operands = repeat(values) if isinstance(values, float) else values
        for tensor, value in zip(tensors, operands):
            getattr(tensor, f'{name}_')(value)
