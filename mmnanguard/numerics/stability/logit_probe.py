"""The largest argument of each softmax in a forward pass."""

import math
import sys
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mmnanguard.core.stability.sample import LIMITS

from ..base.tensor_kinds import is_ordinary
from ..probe.place import find_running
from .failsafe import Failsafe
from .module_hooks import is_compiling
from .operand_probe import OperandProbe, name_of
from .runs_plainly import runs_plainly
from .without_modes import without_modes

__all__ = ['LogitProbe']

SOFTMAX = (torch.softmax, F.softmax, Tensor.softmax)
ATTENTION = F.scaled_dot_product_attention
# Of a fused attention, which never writes its logits, these many are computed
# again: of two samples, and of as many queries as fit.
NUM_SAMPLES = 2
DTYPES = tuple(getattr(torch, name) for name in LIMITS)
MAX_LOGITS = 2**20


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


def attention_inputs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Optional[Tensor] = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Optional[float] = None,
    enable_gqa: bool = False,
    **_: object,
) -> Tuple[Tensor, Tensor, Optional[float], bool]:
    """Return the arguments of a fused attention that make its logits."""
    return query, key, scale, enable_gqa


def some_logits(
    query: Tensor,
    key: Tensor,
    scale: Optional[float] = None,
    has_groups: bool = False,
) -> Tensor:
    """Return the logits of a few queries, in float32.

    Masks are not applied: a logit that a mask hides may be counted.

    Args:
        query: Queries, of shape (..., L, E).
        key: Keys, of shape (..., S, E). The shapes before are broadcast. The
            first dimension is that of the samples, unless the other tensor
            has more dimensions.
        scale: The factor on the products; None means 1 / sqrt(E).
        has_groups: Whether heads of keys, in the third dimension from the
            end, are shared by several heads of queries.
    """
    num_dims = max(query.dim(), key.dim(), 3)
    if query.dim() == num_dims:
        query = query[:NUM_SAMPLES]
    if key.dim() == num_dims:
        key = key[:NUM_SAMPLES]
    if has_groups:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    batch = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    num_logits = math.prod(batch) * query.shape[-2] * key.shape[-2]
    stride = max(math.ceil(num_logits / MAX_LOGITS), 1)
    query = query[..., ::stride, :].float()
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    with torch.autocast(query.device.type, enabled=False):
        return query @ key.float().transpose(-2, -1) * factor
