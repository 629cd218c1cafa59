"""Facts about the elements of any tensor, for operations under observation."""

from typing import List

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from ..base.tensor_kinds import real_values, stored_values

__all__ = [
    'finite_absmax',
    'floats',
    'has_nan',
    'has_nan_or_posinf',
    'is_finite',
    'is_mask_of_inf',
    'nonfinite_mask',
]


def floats(tree: object) -> List[Tensor]:
    """Return the elements of a tree's tensors that can be NaN or Inf.

    They share memory with the tensors. Of a complex tensor, they are pairs.
    """
    leaves = []
    for leaf in tree_flatten(tree)[0]:
        values = stored_values(leaf) if isinstance(leaf, Tensor) else None
        if values is not None and real_values(values) is not None:
            leaves.append(values)
    return leaves


def is_finite(tensor: Tensor) -> bool:
    """Whether all elements that can be read are finite. Syncs the device."""
    values = real_values(tensor)
    return values is None or bool(torch.isfinite(values).all())


def has_nan(tensor: Tensor) -> bool:
    """Whether any element is NaN. Syncs the device."""
    values = real_values(tensor)
    return values is not None and bool(values.isnan().any())


def has_nan_or_posinf(tensor: Tensor) -> bool:
    """Whether any element is NaN or positive infinity. Syncs the device."""
    values = real_values(tensor)
    if values is None:
        return False
    return bool((values.isnan() | values.isposinf()).any())


def is_mask_of_inf(tensor: Tensor) -> bool:
    """Whether a tensor that a model keeps may be a mask of -inf.

    Syncs the device.
    """
    return not tensor.requires_grad and not has_nan_or_posinf(tensor)


def nonfinite_mask(tensor: Tensor, only_nan: bool = False) -> Tensor:
    """Return booleans in the shape of a tensor; True is NaN or Inf.

    Args:
        tensor: The tensor.
        only_nan: Whether Inf is False.
    """
    values = real_values(tensor)
    if values is None:
        return torch.zeros(tensor.shape, dtype=torch.bool)
    mask = values.isnan() if only_nan else ~torch.isfinite(values)
    # A complex element is a pair of numbers.
    return mask.any(-1) if tensor.is_complex() else mask


def finite_absmax(tensor: Tensor) -> float:
    """Return the largest finite absolute value. Syncs the device."""
    values = real_values(tensor)
    if values is None:
        return 0.0
    return float(values.abs().nan_to_num(0.0, 0.0, 0.0).max())
