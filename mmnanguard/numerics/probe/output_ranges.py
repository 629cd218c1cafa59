import math
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten

from ..update.blame import plain_name

__all__ = ['record_outputs']

Ranges = Dict[str, Dict[str, Any]]


@contextmanager
def record_outputs(model: nn.Module) -> Iterator[Ranges]:
    """Range of what each top-level child puts out, over all its calls.

    Not by hooks: many mm heads call ``self.forward``, which no hook sees.
    NaN counts for ``is_finite`` alone. Syncs.

    Args:
        model: Wrappers around it (DDP, FSDP) are looked through.
    """
    ranges: Ranges = {}
    replaced = []
    for name, child in children(model).items():
        replaced.append((child, vars(child).get('forward')))
        child.forward = recorded(child.forward, ranges, name)
    try:
        yield ranges
    finally:
        for child, own in replaced:
            del child.forward
            if own is not None:
                child.forward = own


def children(model: nn.Module) -> Dict[str, nn.Module]:
    found = dict(model.named_children())
    while len(found) == 1 and is_wrapped(*found):
        (model,) = found.values()
        found = dict(model.named_children())
    return {plain_name(name): child for name, child in found.items()}


def is_wrapped(name: str) -> bool:
    """By DDP, FSDP and the like, whose only child has such a name."""
    return name == 'module' or not plain_name(name)


def recorded(
    forward: Callable[..., Any], ranges: Ranges, name: str
) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        outputs = forward(*args, **kwargs)
        for leaf in tree_flatten(outputs)[0]:
            is_float = isinstance(leaf, Tensor) and leaf.is_floating_point()
            if is_float and leaf.numel() > 0:
                with _disable_current_modes():  # no probe looks at this
                    add(ranges, name, leaf.detach())
        return outputs

    return run


def add(ranges: Ranges, name: str, values: Tensor) -> None:
    known = ranges.setdefault(
        name, {'min': math.nan, 'max': math.nan, 'is_finite': True}
    )
    sound = values[~values.isnan()]
    if sound.numel() > 0:
        # In this order a NaN, which nothing is less than, does not win.
        known['min'] = min(float(sound.min()), known['min'])
        known['max'] = max(float(sound.max()), known['max'])
    if not bool(torch.isfinite(values).all()):
        known['is_finite'] = False
