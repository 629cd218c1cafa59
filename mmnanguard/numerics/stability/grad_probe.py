"""The largest gradient of each module's own parameters."""

from functools import partial
from typing import List, Mapping, Set

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..base.tensor_kinds import is_ordinary
from .extremes import Extremes
from .without_modes import without_modes

__all__ = ['GradProbe']


class GradProbe:
    """Notes the largest gradients of parameters while its hooks are there.

    A gradient is a sum over the batch, so it is larger than those of outputs,
    and autocast makes it in float16.

    Args:
        modules: The modules by name.

    Attributes:
        grads: The gradients, by the name of the module.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.grads = Extremes()
        self._handles: List[RemovableHandle] = []
        known: Set[int] = set()
        for name, module in modules.items():
            for param in module._parameters.values():
                if param is None or id(param) in known:
                    continue
                known.add(id(param))
                if param.requires_grad:
                    note = partial(self._note, name)
                    self._handles.append(param.register_hook(note))

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _note(self, name: str, grad: Tensor) -> None:
        with without_modes():
            if is_ordinary(grad) and grad.numel():
                self.grads.add(name, grad)
