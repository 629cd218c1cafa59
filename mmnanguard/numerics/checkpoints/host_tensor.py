"""A copy of one tensor on the host, which can be restored."""

from typing import Any, ContextManager, Optional, Tuple

import torch
from torch import Tensor, nn

from ..base.shards import local

__all__ = ['HostTensor']


class HostTensor:
    """A copy of this rank's part of a tensor, without waiting for the device.

    The copy of a tensor on a GPU is in pinned memory. It is complete once the
    current stream has reached it.

    Args:
        tensor: The tensor, which is only read.
    """

    def __init__(self, tensor: Tensor) -> None:
        part = local(tensor).detach()
        # A copy to pageable memory would wait for the device.
        self._values = torch.empty_like(
            part, device='cpu', pin_memory=part.is_cuda
        )
        self._values.copy_(part, non_blocking=True)
        self._device = tensor.device
        self._is_param = isinstance(tensor, nn.Parameter)
        # A part alone does not say how the whole tensor is sharded.
        self._placement: Optional[Tuple[Any, Any]] = None
        if hasattr(tensor, 'to_local'):
            sharded: Any = tensor
            self._placement = sharded.device_mesh, sharded.placements

    @property
    def shape(self) -> torch.Size:
        """The shape of this rank's part."""
        return self._values.shape

    def fits(self, tensor: object) -> bool:
        """Whether the copy can be written into the memory of a tensor."""
        if not isinstance(tensor, Tensor):
            return False
        part = local(tensor)
        return part.shape == self.shape and part.dtype == self._values.dtype

    def restore(self, now: Optional[object]) -> Tensor:
        """Write the copy into a tensor, or return a new tensor.

        Args:
            now: The present tensor or anything else. A tensor of another
                shape is not changed.
        """
        # In place where possible: optimizers, DDP's buckets and captured
        # graphs refer to the memory.
        if isinstance(now, Tensor) and self.fits(now):
            mode: ContextManager[None] = torch.no_grad()
            if now.is_inference():
                mode = torch.inference_mode()
            with mode:
                local(now).copy_(self._values)
            return now
        new = self._values.to(self._device, copy=True)
        if self._placement is not None:
            from torch.distributed.tensor import DTensor

            new = DTensor.from_local(new, *self._placement, run_check=False)
        if self._is_param:
            new = nn.Parameter(new, requires_grad=False)
        return new
