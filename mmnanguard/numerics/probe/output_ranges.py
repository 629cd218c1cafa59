"""The range of the outputs of each top-level module of a model."""

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
    """The range of a module's outputs.

    Attributes:
        min: The smallest number, which may be -inf; NaN if there is none.
        max: The largest number, which may be inf; NaN if there is none.
        is_finite: Whether there was neither a NaN nor an Inf.
    """

    min: float
    max: float
    is_finite: bool


# The range of each module, by the name of the module.
Ranges = Dict[str, Range]


@contextmanager
def record_outputs(model: nn.Module) -> Iterator[Ranges]:
    """Record the range of all outputs of each top-level child of a model.

    Within the context, ``forward`` of each child is replaced, because many mm
    heads call ``self.forward``, which runs no module hooks. A NaN changes
    ``is_finite`` but neither ``min`` nor ``max``. Syncs the device.

    Args:
        model: The model, which may be inside of wrappers (DDP, FSDP).

    Yields:
        The range of each child so far, by the name of the child.
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
            # Without an instance's own forward, the class's applies again.
            if instance_forward is not None:
                child.forward = instance_forward


def children(model: nn.Module) -> Dict[str, nn.Module]:
    """Return the top-level children by name, below any wrappers."""
    named = dict(model.named_children())
    # Wrappers can be nested, such as DDP around torch.compile's.
    while len(named) == 1 and is_wrapper_child(*named):
        (model,) = named.values()
        named = dict(model.named_children())
    return {plain_name(name): child for name, child in named.items()}


def is_wrapper_child(name: str) -> bool:
    """Whether wrappers such as DDP and FSDP have a child of this name."""
    # plain_name removes the names that FSDP and torch.compile insert.
    return name == 'module' or not plain_name(name)


def recorded(
    forward: Callable[..., object], ranges: Ranges, name: str
) -> Callable[..., object]:
    """Return ``forward`` with its outputs recorded under ``name``."""

    def run(*args: object, **kwargs: object) -> object:
        """Run forward and record its outputs."""
        outputs = forward(*args, **kwargs)
        for leaf in tree_flatten(outputs)[0]:
            is_float = isinstance(leaf, Tensor) and leaf.is_floating_point()
            if is_float and leaf.numel() > 0:
                # A probe must not see the operations of the recording.
                with _disable_current_modes():
                    add(ranges, name, leaf.detach())
        return outputs

    return run


def add(ranges: Ranges, name: str, values: Tensor) -> None:
    """Widen the range of ``name`` by some values. Syncs the device."""
    known = ranges.setdefault(
        name, {'min': math.nan, 'max': math.nan, 'is_finite': True}
    )
    # An Inf counts as a number: it shows on which side a module overflows.
    sound = values[~values.isnan()]
    if sound.numel() > 0:
        # min() returns its first argument if the second is NaN.
        known['min'] = min(float(sound.min()), known['min'])
        known['max'] = max(float(sound.max()), known['max'])
    if not bool(torch.isfinite(values).all()):
        known['is_finite'] = False
