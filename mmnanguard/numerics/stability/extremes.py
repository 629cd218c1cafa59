"""The largest absolute elements of many tensors, with few operations."""

from typing import Dict, List, Tuple

import torch
from torch import Tensor

__all__ = ['Extremes', 'largest']

# A name, and what tensors must have in common to be compared.
Key = Tuple[str, torch.dtype, torch.device]


class Extremes:
    """The smallest and the largest elements of tensors, by name.

    Each tensor is reduced at once and not kept, and a name has one pair of
    numbers, however many tensors it gets. No method syncs the device.
    """

    def __init__(self) -> None:
        self._lowest: Dict[Key, Tensor] = {}
        self._highest: Dict[Key, Tensor] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a tensor of real floats with at least one element."""
        key = (name, tensor.dtype, tensor.device)
        low, high = torch.aminmax(tensor.detach())
        if key in self._lowest:
            low = torch.minimum(low, self._lowest[key])
            high = torch.maximum(high, self._highest[key])
        self._lowest[key] = low
        self._highest[key] = high

    def numbers(self) -> List[Tuple[str, Tensor]]:
        """Return numbers, 0-dim, of which the largest is that of their name.

        They are the largest elements, and the smallest ones times -1.
        """
        if not self._lowest:
            return []
        names = [name for name, _, _ in self._lowest]
        negated = torch._foreach_neg(list(self._lowest.values()))
        return [*zip(names, self._highest.values()), *zip(names, negated)]

    def dtypes(self) -> List[Tuple[str, torch.dtype]]:
        """Return the names, each with the dtypes of its tensors."""
        return [(name, dtype) for name, dtype, _ in self._lowest]


def largest(tensor: Tensor) -> Tensor:
    """Return the largest absolute element, 0-dim; NaN if one is NaN."""
    low, high = torch.aminmax(tensor.detach())
    return torch.maximum(high, -low)
