"""The logits of attention, from the arguments of PyTorch's functions."""

import math
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ['attention_inputs', 'multi_head_inputs', 'some_logits']

# Of an attention that does not write its logits, these many are computed
# again: of two samples, and of as many queries as fit.
NUM_SAMPLES = 2
MAX_LOGITS = 2**20


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


def multi_head_inputs(
    args: Tuple[Any, ...], kwargs: Dict[str, Any]
) -> Tuple[Tensor, Tensor]:
    """Return the queries and keys of ``nn.MultiheadAttention``, in float32.

    Both are projected, and of shape (N, heads, L, E).

    Args:
        args: The arguments of ``F.multi_head_attention_forward``, of which
            the tensors are of shape (L, N, E) or (L, E).
        kwargs: Likewise.
    """
    query, key, _, _, num_heads, weight, bias = args[:7]
    if kwargs.get('use_separate_proj_weight'):
        weights = kwargs['q_proj_weight'], kwargs['k_proj_weight']
    else:
        weights = weight.chunk(3)[:2]
    biases: Tuple[Optional[Tensor], ...] = (None, None)
    if bias is not None:
        biases = bias.float().chunk(3)[:2]
    heads: List[Tensor] = []
    for tokens, of_tokens, added in zip((query, key), weights, biases):
        if tokens.dim() == 2:
            tokens = tokens.unsqueeze(1)
        tokens = tokens[:, :NUM_SAMPLES].float()
        with torch.autocast(tokens.device.type, enabled=False):
            tokens = F.linear(tokens, of_tokens.float(), added)
        heads.append(tokens.unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3))
    return heads[0], heads[1]
