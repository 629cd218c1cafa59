"""The largest output of each module, and the largest gradient of one."""

import weakref
from functools import partial
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten

from mmnanguard.core.stability.sample import LIMITS

from ..base.dtype_name import dtype_name
from ..base.tensor_kinds import is_ordinary

__all__ = ['OutputProbe', 'largest']


class OutputProbe:
    """Notes the largest outputs of modules while its hooks are there.

    Args:
        modules: The modules by name.
        needs_grads: Whether to note gradients of outputs as well.

    Attributes:
        values: The largest absolute element of each output, with the name of
            the module.
        dtypes: The narrowest dtype of each module's outputs.
        grads: The largest absolute element of each gradient of an output.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], needs_grads: bool
    ) -> None:
        self._needs_grads = needs_grads
        # The last output: that of a Sequential is that of its last child.
        self._last: Tuple[Callable[[], Optional[Tensor]], int] = (gone, 0)
        self.values: List[Tuple[str, Tensor]] = []
        self.dtypes: Dict[str, str] = {}
        self.grads: List[Tensor] = []
        self._handles = []
        for name, module in modules.items():
            note = partial(self._note, name)
            self._handles.append(module.register_forward_hook(note))

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _note(
        self, name: str, module: nn.Module, args: object, outputs: object
    ) -> None:
        """Note the outputs of a forward pass; changes none of them."""
        for output in tensors_in(outputs):
            before, version = self._last
            if before() is output and version == output._version:
                continue
            self._last = weakref.ref(output), output._version
            dtype = dtype_name(output.dtype)
            if dtype not in LIMITS:
                continue
            self.values.append((name, largest(output)))
            known = self.dtypes.get(name, dtype)
            self.dtypes[name] = min(dtype, known, key=LIMITS.__getitem__)
            is_half = output.dtype == torch.float16
            if self._needs_grads and is_half and output.requires_grad:
                output.register_hook(self._note_grad)

    def _note_grad(self, grad: Tensor) -> None:
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
    # Other modes of the user must not see these operations.
    with torch.no_grad(), _disable_current_modes():
        low, high = torch.aminmax(tensor.detach())
        return torch.maximum(high, -low)


def gone() -> Optional[Tensor]:
    """Return None, as a reference to a tensor that is gone does."""
    return None
