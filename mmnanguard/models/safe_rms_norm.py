from typing import Optional

import torch
from torch import Tensor, nn

from mmnanguard.core.checks import check_value
from mmnanguard.numerics.safe_ops import safe_norm, widen
from mmnanguard.registry import MODELS

__all__ = ['SafeRMSNorm']


@MODELS.register_module()
class SafeRMSNorm(nn.Module):
    """x / sqrt(mean(x**2) + eps) * weight, finite for all finite numbers.

    A row of zeros gives zeros and finite gradients, one of the dtype's largest
    numbers is normalised like any other: no square of it overflows.
    Statistics, division and weight are in float32 for a float16 or
    bfloat16 input, under autocast too; the result has the input's dtype.

    Args:
        num_features: Size of the normalised dimension.
        eps: Above 0.
        affine: Have a weight, which starts at 1? There is no bias.
        dim: Normalised dimension: the last, or 1 for images (N, C, H, W).

    References:
        Zhang, Sennrich, Root Mean Square Layer Normalization, 2019,
        https://arxiv.org/abs/1910.07467
    """

    weight: Optional[nn.Parameter]
    _abbr_ = 'rms_norm'  # of which mmcv makes the names of layers

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
        self.register_parameter('weight', weight)

    def forward(self, x: Tensor) -> Tensor:
        wide = widen(x)
        # Divided before the norm is taken, which is then at most max(|x|).
        rms = safe_norm(
            wide / self.num_features**0.5, dim=self.dim, keepdim=True
        )
        wide = wide / torch.hypot(rms, rms.new_full((), self.eps**0.5))
        if self.weight is not None:
            shape = [1] * x.dim()
            shape[self.dim] = self.num_features
            wide = wide * widen(self.weight).view(shape)
        return wide.to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f'{self.num_features}, eps={self.eps}, '
            f'affine={self.weight is not None}, dim={self.dim}'
        )
