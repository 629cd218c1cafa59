"""The views of a storage, and codes that are carried between them."""

from typing import Mapping, Tuple

import torch
from torch import Tensor

from ..base.tensor_kinds import stored_values
from .sample_sets import compact

__all__ = ['ViewLayout', 'key_of', 'layout_of', 'read_through']

# The offset, shape and strides in elements, and the bytes of an element.
ViewLayout = Tuple[int, Tuple[int, ...], Tuple[int, ...], int]


def key_of(tensor: Tensor) -> int:
    """Return the identity of the storage of a tensor's elements.

    Another storage may get the same identity once this one is freed. The
    identity of a tensor whose elements cannot be read is 0.
    """
    values = stored_values(tensor)
    return 0 if values is None else int(values.untyped_storage()._cdata)


def layout_of(tensor: Tensor) -> ViewLayout:
    """Return the layout of a tensor in its storage."""
    return (
        int(tensor.storage_offset()),
        tuple(tensor.shape),
        tuple(tensor.stride()),
        tensor.element_size(),
    )


def read_through(
    tensor: Tensor, views: Mapping[ViewLayout, Tensor], wanted: ViewLayout
) -> Tensor:
    """Return the codes of a view, derived from the codes of other views.

    Args:
        tensor: Any view of the storage.
        views: The known codes by layout. Where views overlap, a later entry
            overwrites an earlier entry.
        wanted: The layout of the view in question.
    """
    num_elements = tensor.untyped_storage().nbytes() // tensor.element_size()
    # A number for each element of the storage; 0 where nothing is known.
    flat = torch.zeros(num_elements, dtype=torch.long)
    for (offset, shape, stride, itemsize), codes in views.items():
        # A view with elements of another size does not fit these.
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
