"""A norm that is modulated by a condition, with a bounded scale."""

from typing import Any, Dict, Optional, Tuple

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmnanguard.core.checks import check_value
from mmnanguard.numerics.safe_ops import widen
from mmnanguard.registry import MODELS

from .safe_rms_norm import SafeRMSNorm

__all__ = ['SafeAdaLNZero']


@MODELS.register_module()
class SafeAdaLNZero(BaseModule):
    """A norm whose scale, shift and gate come from a condition.

    It starts as the plain norm with a gate of 0, so that a residual branch
    begins as the identity::

        y, gate = self.norm(x, cond)
        x = x + gate * self.branch(y)

    The scale cannot leave [1 - max_scale, 1 + max_scale], however large the
    projection grows, up to Inf. The scale, the norm (``SafeRMSNorm``) and the
    modulation are computed in float32 under autocast; both results have the
    dtype of ``x``.

    Args:
        embed_dims: The number of channels of ``x``.
        cond_dims: The number of channels of the condition.
        max_scale: The bound of the scale's distance from 1, above 0; below 1
            the scale can never change a sign. Near 1 the bound has no effect
            on the scale.
        eps: The number above 0 that is added to the mean square in the norm.
        init_cfg: MMEngine's config of the initialization; it overrides the
            zeros of the projection.

    References:
        Peebles, Xie, Scalable Diffusion Models with Transformers, 2022,
        https://arxiv.org/abs/2212.09748
    """

    def __init__(
        self,
        embed_dims: int,
        cond_dims: int,
        max_scale: float = 2.0,
        eps: float = 1e-5,
        init_cfg: Optional[Dict[str, Any]] = None,
    ) -> None:
        super().__init__(init_cfg)
        check_value(
            max_scale > 0, 'SafeAdaLNZero.max_scale', max_scale, 'above 0'
        )
        self.max_scale = max_scale
        # Scale and shift of the condition stand in for the norm's own weight.
        self.norm = SafeRMSNorm(embed_dims, eps=eps, affine=False)
        self.project = nn.Linear(cond_dims, 3 * embed_dims)
        # The "Zero" of the paper: with a gate of 0 a deep net starts as the
        # identity.
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor, cond: Tensor) -> Tuple[Tensor, Tensor]:
        """Normalise and modulate tokens.

        Args:
            x: Tokens of shape (N, L, embed_dims).
            cond: Conditions of shape (N, cond_dims).

        Returns:
            The modulated tokens of shape (N, L, embed_dims), and the gate of
            shape (N, 1, embed_dims).
        """
        raw = self.project(nn.functional.silu(cond)).unsqueeze(1)
        scale, shift, gate = widen(raw).chunk(3, dim=-1)
        # tanh bounds the scale and has the slope 1 at 0.
        scale = 1 + self.max_scale * torch.tanh(scale / self.max_scale)
        # Cast only at the end: in float16 the product could overflow in spite
        # of the bounded scale.
        y = self.norm(widen(x)) * scale + shift
        return y.to(x.dtype), gate.to(x.dtype)
