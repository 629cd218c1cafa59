"""RMSNorm without overflow and without a division by zero."""

from typing import Optional

import torch
from torch import Tensor, nn

from mmnanguard.core.checks import check_value
from mmnanguard.numerics.safe_ops import safe_norm, widen
from mmnanguard.registry import MODELS

__all__ = ['SafeRMSNorm']


@MODELS.register_module()
class SafeRMSNorm(nn.Module):
    """RMSNorm that is finite for all finite inputs.

    It computes ``x / sqrt(mean(x**2) + eps) * weight``. A row of zeros gives
    zeros and finite gradients; a row of the dtype's largest numbers is
    normalised like any other, as its square never overflows. Statistics,
    division and weight are in float32 for a float16 or bfloat16 input, under
    autocast too; the result has the input's dtype.

    Args:
        num_features: The size of the normalised dimension.
        eps: The number above 0 that is added to the mean square.
        affine: Whether there is a weight, which starts at 1. There is no
            bias.
        dim: The normalised dimension: the last, or 1 for images of shape
            (N, C, H, W).

    References:
        Zhang, Sennrich, Root Mean Square Layer Normalization, 2019,
        https://arxiv.org/abs/1910.07467
    """

    weight: Optional[nn.Parameter]
    # mmcv's build_norm_layer makes the names of layers from ``_abbr_``.
    _abbr_ = 'rms_norm'

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        dim: int = -1,
    ) -> None:
        super().__init__()
        check_value(eps > 0, 'SafeRMSNorm.eps', eps, 'above 0')
        self.num_features = num_features
        self.eps = eps
        self.dim = dim
        weight = nn.Parameter(torch.ones(num_features)) if affine else None
        # Registered even if it is None, so that the attribute always exists.
        self.register_parameter('weight', weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a tensor.

        Args:
            x: A tensor of any shape with ``num_features`` in dimension
                ``dim``.

        Returns:
            The normalised tensor, of the same shape and dtype.
        """
        wide = widen(x)
        # With the division first, the norm is at most max(|x|).
        rms = safe_norm(
            wide / self.num_features**0.5, dim=self.dim, keepdim=True
        )
        # hypot takes the root of the sum of squares without overflow.
        wide = wide / torch.hypot(rms, rms.new_full((), self.eps**0.5))
        if self.weight is not None:
            # Broadcasting aligns the last dimensions; dim may be another one.
            shape = [1] * x.dim()
            shape[self.dim] = self.num_features
            wide = wide * widen(self.weight).view(shape)
        return wide.to(x.dtype)

    def extra_repr(self) -> str:
        """Return the arguments, for ``repr`` of a model."""
        return (
            f'{self.num_features}, eps={self.eps}, '
            f'affine={self.weight is not None}, dim={self.dim}'
        )
