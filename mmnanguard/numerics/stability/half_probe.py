"""The largest float16 number that each method of a module works with."""

import math
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
from .failsafe import Failsafe
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
        failsafe: Runs the measurements; after a failure there are none.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        limit: float,
        failsafe: Failsafe,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {id(module): name for name, module in modules.items()}
        self._limit = limit
        self._failsafe = failsafe
        self._values: Dict[str, List[Tensor]] = {}

    def __torch_dispatch__(
        self,
        func: Operation,
        types: object,
        args: Args = (),
        kwargs: Optional[Kwargs] = None,
    ) -> object:
        kwargs = kwargs or {}
        # A backward pass, which may run the forward pass once more.
        if torch._C._current_autograd_node() is not None:
            return func(*args, **kwargs)
        run = self._failsafe.run
        before: List[Tensor] = []
        run(self._target, self._look_before, before, func, args, kwargs)
        outputs = func(*args, **kwargs)
        run(self._target, self._look_after, before, func, outputs)
        return outputs

    def _look_before(
        self, before: List[Tensor], func: Operation, args: Args, kwargs: Kwargs
    ) -> None:
        """Add the largest numbers of an operation's inputs."""
        inputs: List[object] = tree_flatten((args, kwargs))[0]
        if func._schema.is_mutable:
            # The dtype of the result is that of the tensor it is written to.
            inputs = inputs[:1]
        # The operation may write to them.
        before += largest_halves(inputs)

    def _look_after(
        self, before: List[Tensor], func: Operation, outputs: object
    ) -> None:
        after = largest_halves(tree_flatten(outputs)[0])
        if after:
            self._note(func, before, after)

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
            # Made of numbers, a NaN is an overflow.
            made = value.nan_to_num(nan=math.inf, posinf=math.inf)
            value = torch.where(most.isnan(), most, made)
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

        There is none after a failure. Syncs the device.
        """
        above: Dict[str, float] = {}
        self._failsafe.run(str, self._take, above)
        return above

    def _take(self, above: Dict[str, float]) -> None:
        targets = list(self._values)
        if not targets:
            return
        most, nans = [], []
        for values in map(torch.stack, self._values.values()):
            known = values.nan_to_num(nan=0.0, posinf=math.inf)
            most.append(known.max())
            nans.append(values.isnan().any().to(values.dtype))
        numbers = torch.stack(on_one_device([*most, *nans])).tolist()
        numbers, has_nan = numbers[: len(targets)], numbers[len(targets) :]
        # Without an overflow, a NaN is of the batch.
        has_overflowed = math.inf in numbers
        for target, number, is_nan in zip(targets, numbers, has_nan):
            if number >= self._limit or (has_overflowed and is_nan):
                above[target] = math.nan if is_nan else number


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
