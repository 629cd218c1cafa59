"""A copy of one tensor on the host, which can be restored."""

from typing import Any, Optional, Tuple

import torch
from torch import Tensor, nn

from ..base.shards import local
from ..base.tensor_kinds import copy_of, is_ordinary, write

__all__ = ['HostTensor', 'keep_tensor']


class HostTensor:
    """A copy of this rank's part of a tensor.

    Args:
        tensor: The tensor of which the copy is.
        values: The copy, on the host if possible.
    """

    def __init__(self, tensor: Tensor, values: Tensor) -> None:
        self._values = values
        self._device = tensor.device
        self._is_param = isinstance(tensor, nn.Parameter)
        # A part alone does not say how the whole tensor is sharded.
        self._placement: Optional[Tuple[Any, Any]] = None
        if hasattr(tensor, 'to_local'):
            sharded: Any = tensor
            self._placement = sharded.device_mesh, sharded.placements

    def fits(self, tensor: object) -> bool:
        """Whether the copy can be written into the memory of a tensor."""
        if not isinstance(tensor, Tensor):
            return False
        part = local(tensor)
        return (
            part.shape == self._values.shape
            and part.dtype == self._values.dtype
            and part.layout == self._values.layout
        )

    @torch.no_grad()
    def restore(self, now: object) -> Tensor:
        """Write the copy into a tensor, or return a new tensor.

        Args:
            now: The present tensor or anything else. A tensor of another
                shape is not changed.
        """
        # In place where possible: optimizers, DDP's buckets and captured
        # graphs refer to the memory.
        if isinstance(now, Tensor) and self.fits(now):
            part = local(now)
            if part.is_inference():
                write(part, self._values)
            else:
                part.copy_(self._values)
            return now
        new = self._values.to(self._device, copy=True)
        if self._placement is not None:
            from torch.distributed.tensor import DTensor

            new = DTensor.from_local(new, *self._placement, run_check=False)
        if self._is_param:
            new = nn.Parameter(new, requires_grad=False)
        return new


@torch.no_grad()
def keep_tensor(tensor: Tensor) -> Optional[HostTensor]:
    """Copy a tensor, without waiting for the device.

    The copy of a tensor on a GPU is in pinned memory. It is complete once the
    current stream has reached it.

    Returns:
        None if the tensor cannot be copied. A tensor that is not strided
        memory is copied on its device.
    """
    part = local(tensor)
    if not is_ordinary(part):
        copy = copy_of(part)
        return None if copy is None else HostTensor(tensor, copy)
    # A copy to pageable memory would wait for the device.
    values = torch.empty_like(
        part.detach(), device='cpu', pin_memory=part.is_cuda
    )
    values.copy_(part.detach(), non_blocking=True)
    return HostTensor(tensor, values)
