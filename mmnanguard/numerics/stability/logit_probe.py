"""The largest argument of each softmax in a forward pass."""

import sys
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mmnanguard.core.stability.sample import LIMITS

from ..base.tensor_kinds import is_ordinary
from ..probe.place import find_running
from .attention import attention_inputs, multi_head_inputs, some_logits
from .failsafe import Failsafe
from .module_hooks import is_compiling
from .operand_probe import OperandProbe, name_of
from .runs_plainly import runs_plainly
from .without_modes import without_modes

__all__ = ['LogitProbe']

SOFTMAX = (torch.softmax, F.softmax, Tensor.softmax)
ATTENTION = F.scaled_dot_product_attention
# No mode sees the functions that it calls.
MULTI_HEAD = F.multi_head_attention_forward
DTYPES = tuple(getattr(torch, name) for name in LIMITS)


class LogitProbe(TorchFunctionMode):
    """Notes the arguments of softmax and of fused attention.

    The loss of a classifier uses log_softmax or cross_entropy, which are left
    out. Masks of -inf or -100 do not matter, as the largest argument is noted.

    Args:
        modules: The modules by name.
        failsafe: Runs the measurements; after a failure there are none.

    Attributes:
        values: The largest argument of each call, with the module's name.
        operands: The smallest operand of each other call, by the same mode.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], failsafe: Failsafe
    ) -> None:
        super().__init__()
        self._failsafe = failsafe
        self._names = {id(module): name for name, module in modules.items()}
        self.values: List[Tuple[str, Tensor]] = []
        self.operands = OperandProbe(self._names)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Tuple[Any, ...] = (),
        kwargs: Optional[Dict[str, Any]] = None,
    ) -> Any:
        kwargs = kwargs or {}
        # First, so that Dynamo makes the same code as without a mode.
        if is_compiling() or self._failsafe.failure or not runs_plainly():
            return func(*args, **kwargs)
        run, where = self._failsafe.run, self._module
        if func in SOFTMAX:
            run(where, self._note, args[0] if args else kwargs.get('input'))
        elif func is ATTENTION:
            run(where, self._note_attention, args, kwargs)
        elif func is MULTI_HEAD:
            run(where, self._note_multi_head, args, kwargs)
        name = name_of(func)
        if not name:
            return func(*args, **kwargs)
        run(where, self.operands.before, name, args, kwargs)
        result = func(*args, **kwargs)
        run(where, self.operands.after, name, args, kwargs, result)
        return result

    def _module(self) -> str:
        """Return the innermost module that is running; '' if none is."""
        running, _ = find_running(sys._getframe(), self._names)
        return running.name if running else ''

    def _note(self, logits: object) -> None:
        if not isinstance(logits, Tensor) or not is_ordinary(logits):
            return
        if logits.dtype in DTYPES and logits.numel():
            with without_modes():
                value = logits.detach().max()
            self.values.append((self._module(), value))

    def _note_attention(
        self, args: Tuple[Any, ...], kwargs: Dict[str, Any]
    ) -> None:
        query, key, scale, has_groups = attention_inputs(*args, **kwargs)
        if not (is_ordinary(query) and is_ordinary(key)):
            return
        if query.dtype in DTYPES and query.numel() and key.numel():
            with without_modes():
                logits = some_logits(
                    query.detach(), key.detach(), scale, has_groups
                )
            self._note(logits)

    def _note_multi_head(
        self, args: Tuple[Any, ...], kwargs: Dict[str, Any]
    ) -> None:
        tensors = (*args, *kwargs.values())
        for tensor in tensors:
            if isinstance(tensor, Tensor) and not is_ordinary(tensor):
                return
        if args[0].numel() and args[1].numel():
            with without_modes(), torch.no_grad():
                logits = some_logits(*multi_head_inputs(args, kwargs))
            self._note(logits)
