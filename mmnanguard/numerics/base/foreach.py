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
    """``torch._foreach_{name}_``, and one by one where it is not implemented:
    PyTorch 2.1 has none for sparse tensors.
    """
    try:
        getattr(torch, f'_foreach_{name}_')(tensors, values)
    except NotImplementedError:
        each = repeat(values) if isinstance(values, float) else values
        for tensor, value in zip(tensors, each):
            getattr(tensor, f'{name}_')(value)
