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
    """Call ``torch._foreach_{name}_``, or change the tensors in a loop.

    PyTorch 2.1 does not implement these kernels for sparse tensors.

    Args:
        name: The name of the operation, such as 'mul'.
        tensors: The tensors, which are changed in place.
        values: The operand: a number for all tensors, or a sequence with a
            tensor for each.
    """
    # These functions are private, but PyTorch's own optimizers are built on
    # them (see torch/optim/adam.py), and there is no public equivalent.
    kernel = getattr(torch, f'_foreach_{name}_')
    try:
        kernel(tensors, values)
    except NotImplementedError:
        # The dispatcher refuses the call before any tensor has changed, so
        # that the loop applies the operation once and not twice.
        operands = repeat(values) if isinstance(values, float) else values
        for tensor, value in zip(tensors, operands):
            getattr(tensor, f'{name}_')(value)
