"""What of a tensor lies on this rank."""

from torch import Tensor

__all__ = ['local']


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor, in the same memory; else the tensor."""
    return tensor.to_local() if hasattr(tensor, 'to_local') else tensor
