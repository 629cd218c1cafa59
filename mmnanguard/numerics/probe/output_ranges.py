"""The range of what each top-level module of a model returns."""

import math
from contextlib import contextmanager
from typing import Callable, Dict, Iterator, TypedDict

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten

from ..update.blame import plain_name

__all__ = ['Range', 'record_outputs']


class Range(TypedDict):
    """The range of a tensor; NaN where no number was seen."""

    min: float
    max: float
    is_finite: bool


Ranges = Dict[str, Range]


@contextmanager
def record_outputs(model: nn.Module) -> Iterator[Ranges]:
    """Record the range of all outputs of each top-level child of a model.

    ``forward`` is replaced for the time, because many mm heads call
    ``self.forward``, which runs no module hooks. A NaN changes ``is_finite``
    but neither ``min`` nor ``max``. Syncs the device.

    Args:
        model: The model; its wrappers (DDP, FSDP) are looked through.

    Yields:
        By name of the child, its range so far.
    """
    ranges: Ranges = {}
    replaced = []
    for name, child in children(model).items():
        replaced.append((child, vars(child).get('forward')))
        child.forward = recorded(child.forward, ranges, name)
    try:
        yield ranges
    finally:
        for child, instance_forward in replaced:
            del child.forward
            if instance_forward is not None:
                child.forward = instance_forward


def children(model: nn.Module) -> Dict[str, nn.Module]:
    """Return the top-level children by name, below any wrappers."""
    named = dict(model.named_children())
    while len(named) == 1 and is_wrapper_child(*named):
        (model,) = named.values()
        named = dict(model.named_children())
    return {plain_name(name): child for name, child in named.items()}


def is_wrapper_child(name: str) -> bool:
    """Whether DDP, FSDP and the like call their only child by this name."""
    return name == 'module' or not plain_name(name)


def recorded(
    forward: Callable[..., object], ranges: Ranges, name: str
) -> Callable[..., object]:
    """Return ``forward`` with its outputs recorded under ``name``."""

    def run(*args: object, **kwargs: object) -> object:
        outputs = forward(*args, **kwargs)
        for leaf in tree_flatten(outputs)[0]:
            is_float = isinstance(leaf, Tensor) and leaf.is_floating_point()
            if is_float and leaf.numel() > 0:
                # A probe must not see the operations of this record.
                with _disable_current_modes():
                    add(ranges, name, leaf.detach())
        return outputs

    return run


def add(ranges: Ranges, name: str, values: Tensor) -> None:
    """Widen the range of ``name`` by some values. Syncs the device."""
    known = ranges.setdefault(
        name, {'min': math.nan, 'max': math.nan, 'is_finite': True}
    )
    sound = values[~values.isnan()]
    if sound.numel() > 0:
        # min() returns its first argument if the second is NaN.
        known['min'] = min(float(sound.min()), known['min'])
        known['max'] = max(float(sound.max()), known['max'])
    if not bool(torch.isfinite(values).all()):
        known['is_finite'] = False
