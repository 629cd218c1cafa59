"""Tensors that a model publishes under a name, for the event of an update."""

import math
from typing import Any, Dict, Tuple

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

from ..base.host_read import read_once

__all__ = ['forget_watched', 'read_watched', 'watch']

# The lowest and highest values of the present window, by name. NanGuardHook
# empties it when a new window begins.
_WATCHED: Dict[str, Tuple[Tensor, Tensor]] = {}


@torch.compiler.disable
@torch.no_grad()
def watch(name: str, tensor: Tensor) -> Tensor:
    """Report the range of a tensor if this update goes bad.

    Costs one reduction on the device and no sync, and keeps two numbers, not
    the tensor. Several calls with one name in a window, also of several
    micro-batches, make one range.

    Args:
        name: The key in the event's ``watched``.
        tensor: A floating-point tensor. A tensor without a range (empty,
            sparse, complex, float8, under ``vmap``) is ignored.

    Returns:
        ``tensor``, so that a call can stand in an expression.
    """
    try:
        low, high = torch.aminmax(tensor.detach())
        is_known = low.is_floating_point() and not is_batchedtensor(low)
    except (AttributeError, RuntimeError):  # a report must not end a run
        is_known = False
    if is_known:
        if name in _WATCHED:
            before = _WATCHED[name]
            low = torch.minimum(low, before[0])
            high = torch.maximum(high, before[1])
        _WATCHED[name] = low, high
    return tensor


def forget_watched() -> None:
    """Forget all ranges."""
    _WATCHED.clear()


def read_watched() -> Dict[str, Dict[str, Any]]:
    """Return min, max and is_finite of each name. Syncs the device.

    Min and max are NaN if an element is NaN.
    """
    ranges = {}
    for name, (low, high) in read_once(_WATCHED).items():
        # aminmax returns NaN for both if an element is NaN.
        is_finite = math.isfinite(low) and math.isfinite(high)
        ranges[name] = {'min': low, 'max': high, 'is_finite': is_finite}
    return ranges
