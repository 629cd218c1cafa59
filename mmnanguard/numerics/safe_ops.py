"""Divisions, norms and softmaxes that make no NaN of finite numbers.

What holds for all of them:

- **Finite in, finite out, forward and backward**, over the dtype's whole
  range: zeros, denormals, its largest numbers, masks that keep nothing; for
  gradients from above of at most 6e4. Elsewhere they are the plain operation
  to the dtype's precision.
- float16 and bfloat16 are computed in float32, under autocast too; the result
  has the dtype of the input. A gradient too large for float16 becomes its
  largest number.
- They hide nothing that goes in: of a NaN or Inf they make what the plain
  operation makes, so that a guard sees it; but what lies at a masked place
  reaches nothing. A NaN or Inf in the gradient from above goes through, but
  where the gradient is 0 by design (a place that is filled, limited, left
  out or masked) it ends.
- No sync, no collective. They compile as one graph, and of finite numbers
  of an ordinary size there are second derivatives, too.
"""

import math
from functools import reduce
from typing import Any, List, Optional, Tuple, Union

import torch
from torch import Tensor

from mmnanguard.core.checks import check_value

__all__ = [
    'check_mask',
    'masked_mean',
    'masked_softmax',
    'safe_divide',
    'safe_log',
    'safe_norm',
    'safe_sqrt',
    'widen',
]

Dims = Union[int, Tuple[int, ...]]


def safe_divide(
    numerator: Union[Tensor, float],
    denominator: Tensor,
    *,
    eps: float = 0.0,
    fill: float = 0.0,
) -> Tensor:
    """``numerator / denominator``, and ``fill`` where nothing is divided by.

    A denominator that is zero says that the quotient means nothing (a hand
    without a size), so by default it adds nothing. An epsilon in the
    denominator would make it the largest number of the batch instead.

    Args:
        numerator: Of any shape that broadcasts with the other's.
        denominator: Floating point.
        eps: In units of the denominator: up to this magnitude, inclusive, it
            counts as zero. 0 or more; compared in float32 at least.
        fill: Result where the denominator counts as zero.

    Returns:
        The quotient; limited to the dtype's largest number where it would
        be beyond. At ``fill`` and at this limit both gradients are 0. So is
        one whose derivative (1 / b, -a / b**2) is above the square root of
        float32's (float64's) largest number, 1.8e19 (1.3e154): the second
        moment of an optimizer holds no more.

    Raises:
        GuardConfigError: If ``eps`` is negative.
    """
    check_value(eps >= 0, 'eps of safe_divide', eps, 'a number from 0 on')
    dtype, bottom = denominator.dtype, widen(denominator)
    if isinstance(numerator, Tensor):
        dtype, top = _promote(numerator, denominator), widen(numerator)
    else:
        top = bottom.new_full((), numerator)
    is_zero = bottom.abs() <= eps
    bottom = bottom.masked_fill(is_zero, 1.0)  # 0 * (1 / 0) would be NaN
    with torch.no_grad():
        quotient = top / bottom
        steepest = min(map(_steepest, _float_dtypes(top, bottom)))
        top_is_steep = bottom.reciprocal().abs() > steepest
        bottom_is_steep = (quotient / bottom).abs() > steepest
        # Inf for an infinite numerator, which is not to look finite.
        limit = top.abs().to(quotient).clamp(min=torch.finfo(dtype).max)
    quotient = torch.where(top_is_steep, top.detach(), top) / torch.where(
        bottom_is_steep, bottom.detach(), bottom
    )
    quotient = quotient.clamp(-limit, limit)
    return quotient.masked_fill(is_zero & top.isfinite(), fill).to(dtype)


def safe_sqrt(x: Tensor) -> Tensor:
    """``sqrt(x)``; 0 with gradient 0 where ``x`` is zero or negative.

    ``x.sqrt().clamp(min=eps)`` is no cure: its gradient at 0 is 0 * Inf. To
    bound the gradient, too, limit what goes in: ``safe_sqrt(x.clamp(eps))``.
    """
    wide = widen(x)
    is_low = (wide <= 0) & wide.isfinite()
    root = wide.masked_fill(is_low, 1.0).sqrt()
    return root.masked_fill(is_low, 0.0).to(x.dtype)


def safe_log(x: Tensor, *, eps: Optional[float] = None) -> Tensor:
    """``log(x)``; log(eps) with gradient 0 where ``x`` is at most ``eps``.

    Args:
        x: Floating point; negative numbers are below ``eps``, too.
        eps: Smallest number that is told apart from zero, and the inverse of
            the largest derivative. By default 5.4e-20 (log: -44.4), and in
            float64 7.5e-155 (-354.9). It works in float16, which has no such
            number itself.

    Raises:
        GuardConfigError: If ``eps`` is below float32's (float64's) smallest
            normal number, 1.2e-38.
    """
    wide = widen(x)
    if eps is None:
        eps = 1 / _steepest(wide.dtype)
    tiny = torch.finfo(wide.dtype).tiny
    check_value(eps >= tiny, 'eps of safe_log', eps, f'at least {tiny:.2g}')
    is_low = (wide <= eps) & wide.isfinite()
    return wide.masked_fill(is_low, eps).log().to(x.dtype)


def safe_norm(x: Tensor, dim: Dims = -1, *, keepdim: bool = False) -> Tensor:
    """L2 norm; 0 with gradient 0 for a row of zeros.

    No square over- or underflows, so a row of 1e-30 has its norm and its
    gradient x / norm, which is at most 1. The second derivative is right for
    norms from 1e-12 to 1e14.

    Returns:
        The norms over ``dim``; limited to the dtype's largest number where
        they would be beyond, with gradient 0.
    """
    wide = widen(x)
    if not wide.numel():  # has no largest number
        return torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim)
    # Powers of two, so that scaling is exact, and only in rows that need it.
    # Dividing a row by its largest number would multiply its gradient by it.
    exponent = math.frexp(torch.finfo(wide.dtype).max)[1]  # 128 in float32
    with torch.no_grad():
        size = wide.abs().amax(dim, keepdim=True)
        is_large = size > 2.0 ** (exponent * 3 // 8)
        is_small = size < 2.0 ** (-exponent * 7 // 16)
        factor = torch.ones_like(size)
        factor = factor.masked_fill(is_large, 2.0 ** (-exponent * 5 // 8))
        factor = factor.masked_fill(is_small, 2.0 ** (exponent * 11 // 16))
    root = safe_sqrt((wide * factor).square().sum(dim, keepdim=True))
    norm = _limit(root, factor * torch.finfo(x.dtype).max) / factor
    return (norm if keepdim else norm.squeeze(dim)).to(x.dtype)


def masked_mean(
    x: Tensor,
    mask: Tensor,
    dim: Optional[Dims] = None,
    *,
    keepdim: bool = False,
) -> Tensor:
    """Mean of what the mask keeps; 0 with gradient 0 where it keeps nothing.

    Args:
        x: Floating point.
        mask: Booleans, **True takes part**; broadcasts with ``x``.
        dim: Dimensions to reduce; all of them by default.
        keepdim: Keep them, with size 1.

    Raises:
        GuardConfigError: If the mask is not boolean.
    """
    check_mask(mask, 'masked_mean')
    wide, mask = torch.broadcast_tensors(widen(x), mask)
    count = mask.sum(dim, keepdim=True).clamp(min=1)
    # Divided before it is added, and by twice as much: no sum overflows.
    halves = wide.masked_fill(~mask, 0.0) * (0.5 / count.to(wide.dtype))
    half = halves.sum(dim, keepdim=keepdim)
    half = _limit(half, half.new_full((), torch.finfo(x.dtype).max / 2))
    return (2 * half).to(x.dtype)


def masked_softmax(
    scores: Tensor, mask: Tensor, dim: int = -1, *, empty: str = 'zeros'
) -> Tensor:
    """Softmax over what the mask keeps, 0 elsewhere; never NaN.

    Args:
        scores: Floating point.
        mask: Booleans, **True takes part**, as in PyTorch's
            ``scaled_dot_product_attention`` (in ``nn.MultiheadAttention``
            True is left out: pass ``~key_padding_mask``). Broadcasts with
            ``scores``.
        dim: Along which a row adds up to 1.
        empty: What a row is of which the mask keeps nothing: 'zeros', or
            'uniform' (1 / length at each place). Its gradient is 0.

    Raises:
        GuardConfigError: If the mask is not boolean or ``empty`` is another.
    """
    check_mask(mask, 'masked_softmax')
    allowed = ('zeros', 'uniform')
    check_value(
        empty in allowed, 'empty of masked_softmax', empty, f'one of {allowed}'
    )
    wide, mask = torch.broadcast_tensors(widen(scores), mask)
    is_empty = ~mask.any(dim, keepdim=True)
    # Not a large negative number: a score that is kept may be as low.
    wide = wide.masked_fill(~mask, -math.inf).masked_fill(is_empty, 0.0)
    kept = mask if empty == 'zeros' else mask | is_empty
    return wide.softmax(dim).masked_fill(~kept, 0.0).to(scores.dtype)


class _Widen(torch.autograd.Function):
    """To float32; a gradient on its way back is limited, not overflown."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.float()

    @staticmethod
    def setup_context(ctx: Any, inputs: Tuple[Tensor], output: Tensor) -> None:
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        limit = grad.new_full((), torch.finfo(ctx.dtype).max)
        return _limit(grad, limit).to(ctx.dtype)


def widen(x: Tensor) -> Tensor:
    """float16 and bfloat16 to float32, with limited gradients; else ``x``."""
    is_half = x.dtype in (torch.float16, torch.bfloat16)
    return _Widen.apply(x) if is_half else x  # type: ignore[no-any-return]


def _limit(x: Tensor, limit: Tensor) -> Tensor:
    """Clamp to [-limit, limit], but leave an Inf, which is none of ours."""
    return torch.where(x.isinf(), x, x.clamp(-limit, limit))


def _promote(*tensors: Tensor) -> torch.dtype:
    """``torch.result_type`` of a division, which Dynamo does not trace: what
    has no dimensions counts only if nothing else is floating point.
    """
    shaped = _float_dtypes(*[tensor for tensor in tensors if tensor.dim()])
    return reduce(torch.promote_types, shaped or _float_dtypes(*tensors))


def _float_dtypes(*tensors: Tensor) -> List[torch.dtype]:
    return [t.dtype for t in tensors if t.is_floating_point()]


def _steepest(dtype: torch.dtype) -> float:
    return 2.0 ** (math.frexp(torch.finfo(dtype).max)[1] // 2)


def check_mask(mask: Tensor, where: str) -> None:
    """Refuse a mask whose polarity is anyone's guess."""
    check_value(
        mask.dtype is torch.bool,
        f'the dtype of the mask of {where}',
        mask.dtype,
        'torch.bool, True where a place takes part: of ones and zeros '
        '`mask.bool()`, of an additive mask `mask == 0`',
    )
