"""Views of one storage: how a tensor lies in its memory."""

from typing import Mapping, Tuple

import torch
from torch import Tensor

from .sample_sets import compact

__all__ = ['Layout', 'key_of', 'layout_of', 'read_through']

# The offset, shape and strides in elements, and the bytes of an element.
Layout = Tuple[int, Tuple[int, ...], Tuple[int, ...], int]


def key_of(tensor: Tensor) -> int:
    """Return the identity of the tensor's storage.

    Another storage may get the same identity once this one is freed.
    """
    return int(tensor.untyped_storage()._cdata)


def layout_of(tensor: Tensor) -> Layout:
    """Return how a tensor lies in its storage."""
    return (
        int(tensor.storage_offset()),
        tuple(tensor.shape),
        tuple(tensor.stride()),
        tensor.element_size(),
    )


def read_through(
    tensor: Tensor, views: Mapping[Layout, Tensor], wanted: Layout
) -> Tensor:
    """Return the codes of one view, derived from those of other views.

    Args:
        tensor: Any view of the storage.
        views: By layout, the known codes. Later entries overwrite earlier
            ones where they overlap.
        wanted: The layout of the view in question.
    """
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    flat = torch.zeros(size, dtype=torch.long)
    for (offset, shape, stride, itemsize), codes in views.items():
        if itemsize == tensor.element_size():
            # All elements of an expanded dimension are the same memory.
            sizes = list(shape)
            for dim, step in enumerate(stride):
                if step == 0:
                    sizes[dim] = 1
                size = min(sizes[dim], codes.shape[dim])
                codes = codes.narrow(dim, 0, size)
            flat.as_strided(sizes, stride, offset).copy_(codes)
    offset, shape, stride, _ = wanted
    return compact(flat.as_strided(shape, stride, offset))
