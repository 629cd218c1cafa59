from typing import Any, Dict, Tuple

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

from ..base.host_read import read_once

__all__ = ['forget_watched', 'read_watched', 'watch']

# Of the present window; the guard empties it at each new one.
_WATCHED: Dict[str, Tuple[Tensor, Tensor]] = {}


@torch.compiler.disable
@torch.no_grad()
def watch(name: str, tensor: Tensor) -> Tensor:
    """Have a tensor's range in the row of an update that goes bad.

    Costs one reduction on the device, no sync, and keeps two numbers, not
    the tensor. Several calls with a name in one window, gradient
    accumulation included, are one range.

    Args:
        name: Key in the event's ``watched``.
        tensor: Of a floating-point type; what has no range (empty, sparse,
            complex, float8, under ``vmap``) is ignored.

    Returns:
        ``tensor``, so that a call fits into an expression.
    """
    try:
        low, high = torch.aminmax(tensor.detach())
        is_known = low.is_floating_point() and not is_batchedtensor(low)
    except (AttributeError, RuntimeError):  # a diagnosis is worth no run
        is_known = False
    if is_known:
        if name in _WATCHED:
            before = _WATCHED[name]
            low = torch.minimum(low, before[0])
            high = torch.maximum(high, before[1])
        _WATCHED[name] = low, high
    return tensor


def forget_watched() -> None:
    _WATCHED.clear()


def read_watched() -> Dict[str, Dict[str, Any]]:
    """By name: min, max (NaN if an element is) and is_finite; syncs."""
    read = read_once({name: pair for name, pair in _WATCHED.items()})
    return {
        name: {
            'min': low,
            'max': high,
            'is_finite': abs(low) < float('inf') and abs(high) < float('inf'),
        }
        for name, (low, high) in read.items()
    }
