"""The largest gradients of modules: of their outputs, or parameters."""

from functools import partial
from typing import List, Mapping, Set

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..base.tensor_kinds import is_ordinary
from .extremes import Extremes
from .failsafe import Failsafe
from .runs_plainly import runs_plainly
from .without_modes import without_modes

__all__ = ['GradProbe']


class GradProbe:
    """Notes the largest gradients of modules until it is closed.

    Args:
        failsafe: Runs the measurements; after a failure there are none.

    Attributes:
        grads: The gradients, by the name of the module.
    """

    def __init__(self, failsafe: Failsafe) -> None:
        self.grads = Extremes()
        self._failsafe = failsafe
        self._handles: List[RemovableHandle] = []
        self._is_closed = False

    def listen_to_params(self, modules: Mapping[str, nn.Module]) -> None:
        """Note the gradients of the modules' own parameters.

        Such a gradient is a sum over the batch, so it is larger than those of
        outputs, and it is the first to overflow.

        Args:
            modules: The modules by name.
        """
        self._failsafe.run(str, self._listen, modules)

    def _listen(self, modules: Mapping[str, nn.Module]) -> None:
        known: Set[int] = set()
        for name, module in modules.items():
            for param in module._parameters.values():
                if param is None or id(param) in known:
                    continue
                known.add(id(param))
                if param.requires_grad:
                    note = partial(self.note, name)
                    self._handles.append(param.register_hook(note))

    def note(self, name: str, grad: Tensor) -> None:
        """Note a gradient of a module, as a hook of a tensor."""
        if not self._is_closed:
            self._failsafe.run(lambda: name, self._add, name, grad)

    def _add(self, name: str, grad: Tensor) -> None:
        if not runs_plainly():
            return
        with without_modes():
            if is_ordinary(grad) and grad.numel():
                self.grads.add(name, grad)

    def close(self) -> None:
        """Note nothing any more, whatever runs backward later."""
        self._is_closed = True
        for handle in self._handles:
            handle.remove()
        self._handles = []
