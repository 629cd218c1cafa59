from typing import Mapping, Tuple

import torch
from torch import Tensor

from .sample_sets import compact

__all__ = ['Layout', 'key_of', 'layout_of', 'read_through']

# Offset, shape, strides, bytes of an element.
Layout = Tuple[int, Tuple[int, ...], Tuple[int, ...], int]


def key_of(tensor: Tensor) -> int:
    """Of its memory; another takes it once nothing refers to it."""
    return tensor.untyped_storage()._cdata


def layout_of(tensor: Tensor) -> Layout:
    return (
        int(tensor.storage_offset()),
        tuple(tensor.shape),
        tuple(tensor.stride()),
        tensor.element_size(),
    )


def read_through(
    tensor: Tensor, views: Mapping[Layout, Tensor], wanted: Layout
) -> Tensor:
    """What one view of a memory shows if the others show this, the last of
    them above all.
    """
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    flat = torch.zeros(size, dtype=torch.long)
    for (offset, shape, stride, itemsize), codes in views.items():
        if itemsize == tensor.element_size():
            # Of an expanded dimension, one.
            shape = tuple(n if step else 1 for n, step in zip(shape, stride))
            for dim, length in enumerate(shape):
                codes = codes.narrow(dim, 0, min(length, codes.shape[dim]))
            flat.as_strided(shape, stride, offset).copy_(codes)
    offset, shape, stride, _ = wanted
    return compact(flat.as_strided(shape, stride, offset))
