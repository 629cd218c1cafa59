"""The largest output of each module, and the largest gradient of one."""

import weakref
from functools import partial
from typing import Callable, Dict, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from mmnanguard.core.stability.sample import LIMITS

from ..base.tensor_kinds import is_ordinary
from .extremes import Extremes
from .without_modes import without_modes

__all__ = ['OutputProbe']

NAMES = {getattr(torch, name): name for name in LIMITS}


class OutputProbe:
    """Notes the largest outputs of modules while its hooks are there.

    Args:
        modules: The modules by name.
        needs_grads: Whether to note gradients of outputs as well.

    Attributes:
        outputs: The outputs, by the name of the module.
        grads: The gradients of outputs, likewise.
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
        self.outputs, self.grads = Extremes(), Extremes()
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

    def dtypes(self) -> Dict[str, str]:
        """Return the narrowest dtype of each module's outputs."""
        narrowest: Dict[str, str] = {}
        for name, dtype in self.outputs.dtypes():
            known = narrowest.get(name, NAMES[dtype])
            narrowest[name] = min(NAMES[dtype], known, key=LIMITS.__getitem__)
        return narrowest

    def _note(
        self, name: str, module: nn.Module, args: object, outputs: object
    ) -> None:
        """Note the outputs of a forward pass; changes none of them."""
        leaves: List[object] = [outputs]
        if not isinstance(outputs, Tensor):
            leaves = tree_flatten(outputs)[0]
        with without_modes():
            for leaf in leaves:
                if not isinstance(leaf, Tensor) or leaf.dtype not in NAMES:
                    continue
                if is_ordinary(leaf) and leaf.numel():
                    self._note_output(name, leaf)

    def _note_output(self, name: str, output: Tensor) -> None:
        before, version = self._last
        if before() is output and version == output._version:
            return
        self._last = weakref.ref(output), output._version
        self.outputs.add(name, output)
        if not output.requires_grad:
            return
        # A backward pass may run checkpointed modules once more.
        if not self.is_seen and torch._C._current_autograd_node() is None:
            self.has_missed = True
        if self._needs_grads and output.dtype == torch.float16:
            output.register_hook(partial(self._note_grad, name))

    def _note_grad(self, name: str, grad: Tensor) -> None:
        with without_modes():
            if is_ordinary(grad) and grad.numel():
                self.grads.add(name, grad)


def gone() -> Optional[Tensor]:
    """Return None, as a reference to a tensor that is gone does."""
    return None
