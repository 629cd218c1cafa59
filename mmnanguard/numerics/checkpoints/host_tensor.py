"""A copy of one tensor on the host, which can be restored."""

from typing import Any, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..base.host_read import COPIES_LATE
from ..base.shards import local
from ..base.tensor_kinds import copy_of, has_plain_kernels, is_ordinary, write

__all__ = ['HostTensor', 'keep_tensor']


class HostTensor:
    """A copy of this rank's part of a tensor.

    Args:
        tensor: The tensor of which the copy is.
        values: The copy, on the host if possible.
    """

    def __init__(self, tensor: Tensor, values: Tensor) -> None:
        self._values = values
        self._kind = kind_of(local(tensor))
        self._device = tensor.device
        self._is_param = isinstance(tensor, nn.Parameter)
        # A part alone does not say how the whole tensor is sharded.
        self._placement: Optional[Tuple[Any, Any]] = None
        if hasattr(tensor, 'to_local'):
            sharded: Any = tensor
            self._placement = sharded.device_mesh, sharded.placements

    def fits(self, tensor: object) -> bool:
        """Whether the copy can be written into the memory of a tensor."""
        # A lazy tensor has no values yet.
        if not isinstance(tensor, Tensor) or is_lazy(tensor):
            return False
        return kind_of(local(tensor)) == self._kind

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
            write(local(now), self._values)
            return now
        new = self._new_values()
        if self._placement is not None:
            from torch.distributed.tensor import DTensor

            new = DTensor.from_local(new, *self._placement, run_check=False)
        if self._is_param:
            new = nn.Parameter(new, requires_grad=False)
        return new

    def _new_values(self) -> Tensor:
        """Return the content of the copy in new memory."""
        if is_ordinary(self._values):
            return self._values.to(self._device, copy=True)
        # Such a copy is on its device already.
        copy = copy_of(self._values)
        return self._values if copy is None else copy


def kind_of(part: Tensor) -> Tuple[Any, ...]:
    """Return what two tensors have in common if one can be written into."""
    own_type = None if has_plain_kernels(part) else type(part)
    shape: Any
    if part.is_nested and part.layout is torch.strided:
        shape = [item.shape for item in part.unbind()]
    else:
        shape = part.shape
    return own_type, part.layout, part.dtype, part.is_meta, shape


@torch.no_grad()
def keep_tensor(tensor: Tensor) -> Optional[HostTensor]:
    """Copy a tensor; no sync on CUDA.

    The copy of a tensor on a GPU is in pinned memory. It is complete once the
    current stream has reached it. Copies from other devices sync.

    Returns:
        None if the tensor cannot be copied. A tensor that is not strided
        memory is copied on its device.
    """
    part = local(tensor)
    if not is_ordinary(part):
        copy = copy_of(part)
        return None if copy is None else HostTensor(tensor, copy)
    # A copy to pageable memory would wait for the device.
    is_pinned = part.device.type in COPIES_LATE
    values = torch.empty_like(
        part.detach(), device='cpu', pin_memory=is_pinned
    )
    values.copy_(part.detach(), non_blocking=is_pinned)
    return HostTensor(tensor, values)
