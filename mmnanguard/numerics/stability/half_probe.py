"""The largest float16 number that each method of a module works with."""

import sys
from typing import Dict, List, Mapping, Optional, Sequence

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ..base.host_read import on_one_device
from ..base.tensor_kinds import is_ordinary
from ..probe.place import find_running, method_of
from ..probe.sample_tracker import Args, Kwargs, Operation
from .extremes import largest
from .without_modes import without_modes

__all__ = ['HalfProbe']

# Autocast casts the inputs of these operations to float16, whatever they are,
# so that a module that gets large numbers has to run in float32 as well.
# https://pytorch.org/docs/stable/amp.html#cuda-ops-that-autocast-to-float16
CAST = (
    *('addbmm', 'addmm', 'addmv', 'addr', 'baddbmm', 'bmm', 'convolution'),
    *('cudnn_', 'dot', 'linear', 'miopen_', 'mkldnn_', 'mm', 'mv', 'prelu'),
    *('scaled_dot_product_', 'thnn_fused_'),
)


class HalfProbe(TorchDispatchMode):
    """Notes where forward passes make float16 numbers above a limit.

    A number counts where it is made: in an operation whose inputs autocast
    casts, and in any other operation whose inputs are smaller. In float32, all
    that adds to the output or passes it on is in float32 as well.

    Args:
        modules: The modules by name.
        limit: The limit, inclusive.
    """

    def __init__(self, modules: Mapping[str, nn.Module], limit: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {id(module): name for name, module in modules.items()}
        self._limit = limit
        self._values: Dict[str, List[Tensor]] = {}

    def __torch_dispatch__(
        self,
        func: Operation,
        types: object,
        args: Args = (),
        kwargs: Optional[Kwargs] = None,
    ) -> object:
        # A backward pass, which may run the forward pass once more.
        if torch._C._current_autograd_node() is not None:
            return func(*args, **(kwargs or {}))
        inputs: List[object] = tree_flatten((args, kwargs))[0]
        if func._schema.is_mutable:
            # The dtype of the result is that of the tensor it is written to.
            inputs = inputs[:1]
        # Before the operation, which may write to them.
        before = largest_halves(inputs)
        outputs = func(*args, **(kwargs or {}))
        after = largest_halves(tree_flatten(outputs)[0])
        if after:
            self._note(func, before, after)
        return outputs

    def _note(
        self, func: Operation, before: List[Tensor], after: List[Tensor]
    ) -> None:
        """Note the numbers of an operation with outputs in float16."""
        name = func._schema.name.split('::')[-1].lstrip('_')
        target = self._target()
        # A cast belongs to the operation that it is made for.
        if not target or name == 'to_copy':
            return
        value = torch.stack(after).max()
        if before:
            most = torch.stack(before).max()
            if name.startswith(CAST):
                value = torch.maximum(value, most)
            else:
                value = torch.where(most < self._limit, value, 0.0)
        self._values.setdefault(target, []).append(value)

    def _target(self) -> str:
        """Return the innermost method of a module that is running.

        Returns:
            The module's name, with the method unless that is ``forward``; ''
            for the model itself.
        """
        running, _ = find_running(sys._getframe(), self._names)
        if running is None:
            return ''
        method = method_of(running.owner, running.code)
        if method == 'forward':
            return running.name
        return f'{running.name}.{method}'

    def take(self) -> Dict[str, float]:
        """Return the largest number of each target at or above the limit.

        Syncs the device.
        """
        above: Dict[str, float] = {}
        targets = list(self._values)
        if targets:
            most = [torch.stack(v).max() for v in self._values.values()]
            numbers = torch.stack(on_one_device(most)).tolist()
            for target, number in zip(targets, numbers):
                # A NaN was made of an overflow.
                if not number < self._limit:
                    above[target] = number
        return above


def largest_halves(leaves: Sequence[object]) -> List[Tensor]:
    """Return the largest number of each tensor in float16."""
    values = []
    with without_modes():
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or leaf.dtype != torch.float16:
                continue
            if is_ordinary(leaf) and leaf.numel():
                values.append(largest(leaf))
    return values
