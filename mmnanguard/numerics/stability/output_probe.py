"""The largest output of each module, and the largest gradient of one."""

import weakref
from functools import partial
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from mmnanguard.core.stability.sample import LIMITS

from ..base.tensor_kinds import is_ordinary
from .without_modes import without_modes

__all__ = ['OutputProbe', 'largest']

NAMES = {getattr(torch, name): name for name in LIMITS}


class OutputProbe:
    """Notes the largest outputs of modules while its hooks are there.

    Args:
        modules: The modules by name.
        needs_grads: Whether to note gradients of outputs as well.

    Attributes:
        dtypes: The narrowest dtype of each module's outputs.
        grads: The largest absolute element of each gradient of an output.
        is_seen: Whether other probes see the operations of a module that runs
            now.
        has_missed: Whether a trained module ran that they did not see.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], needs_grads: bool
    ) -> None:
        self._needs_grads = needs_grads
        # The last output: that of a Sequential is that of its last child.
        self._last: Tuple[Callable[[], Optional[Tensor]], int] = (gone, 0)
        self._names: List[str] = []
        self._lowest: List[Tensor] = []
        self._highest: List[Tensor] = []
        self.dtypes: Dict[str, str] = {}
        self.grads: List[Tensor] = []
        self.is_seen = self.has_missed = False
        self._handles = []
        for name, module in modules.items():
            note = partial(self._note, name)
            self._handles.append(module.register_forward_hook(note))

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def values(self) -> List[Tuple[str, Tensor]]:
        """Return two numbers of each output, with the name of its module.

        They are its largest element, and its smallest one times -1, both
        0-dim. No sync.
        """
        if not self._names:
            return []
        lowest = torch._foreach_neg(self._lowest)
        return [*zip(self._names, self._highest), *zip(self._names, lowest)]

    def _note(
        self, name: str, module: nn.Module, args: object, outputs: object
    ) -> None:
        """Note the outputs of a forward pass; changes none of them."""
        with without_modes():
            for output in tensors_in(outputs):
                before, version = self._last
                if before() is output and version == output._version:
                    continue
                self._last = weakref.ref(output), output._version
                self._note_output(name, output)

    def _note_output(self, name: str, output: Tensor) -> None:
        dtype = NAMES.get(output.dtype)
        if dtype is None:
            return
        low, high = torch.aminmax(output.detach())
        self._names.append(name)
        self._lowest.append(low)
        self._highest.append(high)
        if LIMITS[dtype] < LIMITS[self.dtypes.setdefault(name, dtype)]:
            self.dtypes[name] = dtype
        if not output.requires_grad:
            return
        # A backward pass may run checkpointed modules once more.
        if not self.is_seen and torch._C._current_autograd_node() is None:
            self.has_missed = True
        if self._needs_grads and output.dtype == torch.float16:
            output.register_hook(self._note_grad)

    def _note_grad(self, grad: Tensor) -> None:
        with without_modes():
            if is_ordinary(grad) and grad.numel():
                self.grads.append(largest(grad))


def tensors_in(outputs: object) -> Iterator[Tensor]:
    """Yield the tensors of real floats in outputs that can be read."""
    leaves: List[object] = [outputs]
    if not isinstance(outputs, Tensor):
        leaves = tree_flatten(outputs)[0]
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            continue
        if is_ordinary(leaf) and leaf.numel():
            yield leaf


def largest(tensor: Tensor) -> Tensor:
    """Return the largest absolute element, 0-dim; NaN counts as inf."""
    low, high = torch.aminmax(tensor.detach())
    return torch.maximum(high, -low)


def gone() -> Optional[Tensor]:
    """Return None, as a reference to a tensor that is gone does."""
    return None
