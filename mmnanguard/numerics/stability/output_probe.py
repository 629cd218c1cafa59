"""The largest output of each module."""

import weakref
from functools import partial
from typing import Any, Callable, Dict, Iterator, Optional, Set, Tuple

import torch
from torch import Tensor

from mmnanguard.core.stability.sample import LIMITS

from ..base.tensor_kinds import is_ordinary
from .extremes import Extremes
from .grad_probe import GradProbe
from .runs_plainly import runs_plainly
from .without_modes import without_modes

__all__ = ['OutputProbe']

NAMES = {getattr(torch, name): name for name in LIMITS}


class OutputProbe:
    """Notes the largest outputs of modules.

    Args:
        grads: Notes the gradients of outputs in float16; None if they are not
            needed.

    Attributes:
        outputs: The outputs, by the name of the module.
        has_missed: Whether a trained module ran whose operations other probes
            did not see.
    """

    def __init__(self, grads: Optional[GradProbe]) -> None:
        self._grads = grads
        # The last output: that of a Sequential is that of its last child.
        self._last: Tuple[Callable[[], Optional[Tensor]], int] = (gone, 0)
        self.outputs = Extremes()
        self._is_seen = self.has_missed = False

    def dtypes(self) -> Dict[str, str]:
        """Return the narrowest dtype of each module's outputs."""
        narrowest: Dict[str, str] = {}
        for name, dtype in self.outputs.dtypes():
            known = narrowest.get(name, NAMES[dtype])
            narrowest[name] = min(NAMES[dtype], known, key=LIMITS.__getitem__)
        return narrowest

    def note(self, name: str, outputs: object, is_seen: bool) -> None:
        """Note the outputs of a forward pass; changes none of them.

        Args:
            name: The name of the module.
            outputs: Its outputs.
            is_seen: Whether other probes see the operations of the module.
        """
        self._is_seen = is_seen
        if not runs_plainly():
            return
        with without_modes():
            for tensor in tensors_in(outputs, set()):
                if tensor.dtype in NAMES and is_ordinary(tensor):
                    self._note_output(name, tensor)

    def _note_output(self, name: str, output: Tensor) -> None:
        if not output.numel():
            return
        before, version = self._last
        if before() is output and version == output._version:
            return
        self._last = weakref.ref(output), output._version
        self.outputs.add(name, output)
        if not output.requires_grad:
            return
        # A backward pass may run checkpointed modules once more.
        if not self._is_seen and torch._C._current_autograd_node() is None:
            self.has_missed = True
        is_half = output.dtype == torch.float16
        # The hook of a leaf, a parameter, would stay.
        if self._grads and is_half and output.grad_fn is not None:
            output.register_hook(partial(self._grads.note, name))


def tensors_in(value: object, known: Set[int]) -> Iterator[Tensor]:
    """Yield the tensors in lists, tuples and dicts; runs no code of a user.

    Args:
        value: Any value.
        known: The ids of the containers that were looked at, as a list may
            contain itself.
    """
    # Not `isinstance`, which asks the value for its class.
    kind = type(value)
    if issubclass(kind, Tensor):
        yield value  # type: ignore[misc]
    elif issubclass(kind, (list, tuple, dict)) and id(value) not in known:
        known.add(id(value))
        parts: Any = value
        if issubclass(kind, dict):
            parts = dict.values(parts)
        elif issubclass(kind, list):
            parts = list.__iter__(parts)
        else:
            parts = tuple.__iter__(parts)
        for part in parts:
            yield from tensors_in(part, known)


def gone() -> Optional[Tensor]:
    """Return None, as a reference to a tensor that is gone does."""
    return None
