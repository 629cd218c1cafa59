"""The largest argument of each softmax in a forward pass."""

import math
import sys
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..base.tensor_kinds import is_ordinary
from ..probe.place import find_running
from .operand_probe import OperandProbe
from .without_modes import without_modes

__all__ = ['LogitProbe']

SOFTMAX = (torch.softmax, F.softmax, Tensor.softmax)
ATTENTION = F.scaled_dot_product_attention
# Of a fused attention, which never writes its logits, these many are computed
# again: of two samples, and of as many queries as fit.
NUM_SAMPLES = 2
MAX_LOGITS = 2**20


class LogitProbe(TorchFunctionMode):
    """Notes the arguments of softmax and of fused attention.

    The loss of a classifier uses log_softmax or cross_entropy, which are left
    out. Masks of -inf or -100 do not matter, as the largest argument is noted.

    Args:
        modules: The modules by name.

    Attributes:
        values: The largest argument of each call, with the module's name.
        operands: The smallest operand of each other call, by the same mode.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
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
        if func in SOFTMAX:
            self._note(args[0] if args else kwargs.get('input'))
        elif func is ATTENTION:
            self._note_attention(*args, **kwargs)
        return self.operands.run(func, args, kwargs)

    def _note(self, logits: object) -> None:
        if not isinstance(logits, Tensor) or not is_ordinary(logits):
            return
        if logits.is_floating_point() and logits.numel():
            with without_modes():
                value = logits.detach().max()
            running, _ = find_running(sys._getframe(), self._names)
            self.values.append((running.name if running else '', value))

    def _note_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Optional[Tensor] = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: Optional[float] = None,
        **_: object,
    ) -> None:
        if not (is_ordinary(query) and is_ordinary(key) and query.numel()):
            return
        with without_modes():
            logits = some_logits(query.detach(), key.detach(), scale)
        self._note(logits)


def some_logits(
    query: Tensor, key: Tensor, scale: Optional[float] = None
) -> Tensor:
    """Return the logits of a few queries, in float32.

    Masks are not applied: a logit that a mask hides may be counted.

    Args:
        query: Queries, of shape (..., L, E), where the first dimension is
            that of the samples.
        key: Keys, of shape (..., S, E).
        scale: The factor on the products; None means 1 / sqrt(E).
    """
    if query.dim() > 2:
        query, key = query[:NUM_SAMPLES], key[:NUM_SAMPLES]
    # Keys of grouped queries are shared by several heads.
    if query.dim() > 3 and query.shape[-3] != key.shape[-3]:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    per_query = query[..., 0, 0].numel() * key.shape[-2]
    stride = math.ceil(query.shape[-2] * per_query / MAX_LOGITS)
    query = query[..., :: max(stride, 1), :].float()
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    with torch.autocast(query.device.type, enabled=False):
        return query @ key.float().transpose(-2, -1) * factor
