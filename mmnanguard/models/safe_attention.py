"""Self-attention in which padding has no effect."""

from typing import Any, Dict, Optional

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmnanguard.core.checks import check_value
from mmnanguard.numerics.safe_ops import check_mask, masked_softmax, widen
from mmnanguard.registry import MODELS

__all__ = ['SafeAttention']


@MODELS.register_module()
class SafeAttention(BaseModule):
    """Multi-head self-attention in which padding has no effect.

    Padded tokens, NaN included, take part neither in the result nor in a
    gradient, and the result is 0 in their place; so a sample that is all
    padding gives zeros. Scores and softmax are in float32 under autocast:
    the product of queries and keys overflows float16 long before they do.

    Args:
        embed_dims: The number of channels, a multiple of ``num_heads``.
        num_heads: The number of heads.
        qkv_bias: Whether queries, keys and values have a bias.
        attn_drop: The dropout rate of the attention, in [0, 1).
        proj_drop: The dropout rate of the result, in [0, 1).
        init_cfg: MMEngine's config of the initialization.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        init_cfg: Optional[Dict[str, Any]] = None,
    ) -> None:
        super().__init__(init_cfg)
        check_value(
            embed_dims % num_heads == 0,
            'SafeAttention.embed_dims',
            embed_dims,
            f'a multiple of num_heads={num_heads}',
        )
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        """Let each token attend to all tokens that are no padding.

        Args:
            x: Tokens of shape (N, L, embed_dims).
            mask: Booleans of shape (N, L): **True takes part**, the inverse
                of mm's and PyTorch's ``key_padding_mask``. None means that
                all tokens take part.

        Returns:
            Tokens of shape (N, L, embed_dims).
        """
        if mask is None:
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        check_mask(mask, 'SafeAttention')
        padding = ~mask.unsqueeze(-1)
        # Zeroed before the projection: the gradient of its weights is a
        # product with x, and 0 * NaN is NaN.
        x = x.masked_fill(padding, 0.0)
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        # Of shape (N, num_heads, L, embed_dims / num_heads).
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        with torch.autocast(x.device.type, enabled=False):
            # Scaled before the product, so that the product is smaller too.
            query = widen(query) * query.size(-1) ** -0.5
            scores = query @ widen(key).transpose(-2, -1)
            attention = masked_softmax(scores, mask[:, None, None])
        out = self.attn_drop(attention).to(value.dtype) @ value
        tokens = out.transpose(1, 2).flatten(2)
        result: Tensor = self.proj_drop(self.proj(tokens))
        # The bias of the projection makes padding non-zero again.
        return result.masked_fill(padding, 0.0)
