"""Divisions, norms and softmaxes that make no NaN of finite numbers.

All operations here have these properties:

- **Finite in, finite out, forward and backward**, over the dtype's whole
  range: zeros, denormals, its largest numbers, masks that keep nothing. This
  holds for incoming gradients of at most 6e4. For ordinary numbers an
  operation equals the plain operation to the dtype's precision.
- float16 and bfloat16 are computed in float32, also under autocast. The
  result has the dtype of the input. A gradient too large for float16 becomes
  float16's largest number.
- A NaN or Inf in the input gives the result of the plain operation, so that a
  guard sees it. A value at a masked place has no effect.
- A NaN or Inf in the incoming gradient passes through, except where the
  gradient is 0 by design: at a place that is filled, limited or masked.
- No operation syncs the device or is collective. Each operation compiles as a
  single graph, and has second derivatives for finite numbers of an ordinary
  size.
"""

import math
from functools import reduce
from typing import List, Optional, Protocol, Tuple, Union

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
    """Return ``numerator / denominator``, or ``fill`` at zero denominators.

    Where the denominator is zero the quotient has no meaning (as for a hand of
    size zero), so that the result there is 0 by default. An epsilon in the
    denominator would turn it into the largest number of the batch instead.

    Args:
        numerator: A number, or a tensor that broadcasts with the denominator.
        denominator: A floating-point tensor.
        eps: The largest magnitude of the denominator, inclusive, that counts
            as zero. At least 0; compared in float32 or float64.
        fill: The result where the denominator counts as zero.

    Returns:
        The quotient, limited to the dtype's largest number. Where the result
        is ``fill`` or limited, both gradients are 0. A gradient is also 0
        where its derivative (1 / b or -a / b**2) is above 1.8e19 (in float64
        1.3e154), the square root of the largest number: an optimizer's
        second moment could not hold its square.

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
    quotient = _limited_quotient(top, bottom, dtype)
    return quotient.masked_fill(is_zero & top.isfinite(), fill).to(dtype)


def _limited_quotient(
    top: Tensor, bottom: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return ``top / bottom`` without steep gradients.

    Args:
        top: The numerator.
        bottom: The denominator, without zeros.
        dtype: The dtype to whose range the quotient is limited.
    """
    # For comparisons and limits only: no gradient flows through these values.
    with torch.no_grad():
        quotient = top / bottom
        steepest = min(map(_steepest, _float_dtypes(top, bottom)))
        top_is_steep = bottom.reciprocal().abs() > steepest
        bottom_is_steep = (quotient / bottom).abs() > steepest
        # An infinite numerator has an infinite limit and stays infinite.
        limit = top.abs().to(quotient).clamp(min=torch.finfo(dtype).max)
    # Each operand is cut off from the gradient by itself: the derivative by
    # the denominator may be steep where that by the numerator is not.
    quotient = torch.where(top_is_steep, top.detach(), top) / torch.where(
        bottom_is_steep, bottom.detach(), bottom
    )
    return quotient.clamp(-limit, limit)


def safe_sqrt(x: Tensor) -> Tensor:
    """Return ``sqrt(x)``, and 0 with gradient 0 where ``x`` is at most 0.

    ``x.sqrt().clamp(min=eps)`` does not help: its gradient at 0 is 0 * Inf.
    To bound the gradient as well, limit the input:
    ``safe_sqrt(x.clamp(min=eps))``.

    Args:
        x: A floating-point tensor.
    """
    wide = widen(x)
    is_low = (wide <= 0) & wide.isfinite()
    # The 1 keeps the derivative of sqrt finite at the places that are filled.
    root = wide.masked_fill(is_low, 1.0).sqrt()
    return root.masked_fill(is_low, 0.0).to(x.dtype)


def safe_log(x: Tensor, *, eps: Optional[float] = None) -> Tensor:
    """Return ``log(x)``, or log(eps) with gradient 0 where ``x <= eps``.

    Args:
        x: A floating-point tensor; negative numbers count as below ``eps``.
        eps: The limit, and the inverse of the largest derivative. By default
            5.4e-20 (log: -44.4), in float64 7.5e-155 (log: -354.9). The
            limit also works for float16, which has no such small number.

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
    """Return the L2 norm, and 0 with gradient 0 for a row of zeros.

    No square overflows or underflows: a row of 1e-30 has its true norm and
    the gradient x / norm, which is at most 1. The second derivative is right
    for norms from 1e-12 to 1e14.

    Args:
        x: A floating-point tensor.
        dim: The dimensions of a row.
        keepdim: Whether to keep these dimensions with size 1.

    Returns:
        The norms, limited to the dtype's largest number. A limited norm has
        gradient 0.
    """
    wide = widen(x)
    if not wide.numel():  # amax refuses an empty tensor
        empty: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim)
        return empty
    # Rows of extreme size are scaled by a power of two, which is exact.
    # Dividing by the row's largest number instead would let the gradient flow
    # through that number.
    exponent = math.frexp(torch.finfo(wide.dtype).max)[1]  # 128 in float32
    with torch.no_grad():
        size = wide.abs().amax(dim, keepdim=True)
        is_large = size > 2.0 ** (exponent * 3 // 8)
        is_small = size < 2.0 ** (-exponent * 7 // 16)
        # The square of a row's largest element is then a normal number, and
        # a sum of fewer than 2**32 such squares does not overflow.
        factor = torch.ones_like(size)
        factor = factor.masked_fill(is_large, 2.0 ** (-exponent * 5 // 8))
        factor = factor.masked_fill(is_small, 2.0 ** (exponent * 11 // 16))
    root = safe_sqrt((wide * factor).square().sum(dim, keepdim=True))
    norm = _limit(root, factor * torch.finfo(x.dtype).max) / factor
    # Kept until here, because the factors must broadcast with the rows.
    if not keepdim:
        norm = norm.squeeze(dim)
    return norm.to(x.dtype)


def masked_mean(
    x: Tensor,
    mask: Tensor,
    dim: Optional[Dims] = None,
    *,
    keepdim: bool = False,
) -> Tensor:
    """Return the mean over the places that a mask keeps.

    Where the mask keeps no place, the mean is 0 with gradient 0.

    Args:
        x: A floating-point tensor.
        mask: Booleans, **True takes part**; broadcasts with ``x``.
        dim: Dimensions to reduce; all of them by default.
        keepdim: Whether to keep these dimensions with size 1.

    Raises:
        GuardConfigError: If the mask is not boolean.
    """
    check_mask(mask, 'masked_mean')
    wide, mask = torch.broadcast_tensors(widen(x), mask)
    count = mask.sum(dim, keepdim=True).clamp(min=1)
    # Each number is divided before the sum, and by twice the count, so that
    # no sum overflows.
    halves = wide.masked_fill(~mask, 0.0) * (0.5 / count.to(wide.dtype))
    half = halves.sum(dim, keepdim=keepdim)
    half = _limit(half, half.new_full((), torch.finfo(x.dtype).max / 2))
    return (2 * half).to(x.dtype)


def masked_softmax(
    scores: Tensor, mask: Tensor, dim: int = -1, *, empty: str = 'zeros'
) -> Tensor:
    """Return the softmax over the places that a mask keeps, 0 elsewhere.

    The result is never NaN for finite scores.

    Args:
        scores: A floating-point tensor.
        mask: Booleans, **True takes part**, as in PyTorch's
            ``scaled_dot_product_attention`` (in ``nn.MultiheadAttention``
            True is left out: pass ``~key_padding_mask``). Broadcasts with
            ``scores``.
        dim: The dimension along which a row adds up to 1.
        empty: The result for a row of which the mask keeps no place:
            'zeros', or 'uniform' (1 / length at each place), with gradient 0
            in both cases.

    Raises:
        GuardConfigError: If the mask is not boolean, or ``empty`` is not one
            of the two names.
    """
    check_mask(mask, 'masked_softmax')
    allowed = ('zeros', 'uniform')
    check_value(
        empty in allowed, 'empty of masked_softmax', empty, f'one of {allowed}'
    )
    wide, mask = torch.broadcast_tensors(widen(scores), mask)
    is_empty = ~mask.any(dim, keepdim=True)
    # -inf, because a large negative number could be a score that is kept. A
    # row of nothing but -inf would become NaN, so that it is set to 0.
    wide = wide.masked_fill(~mask, -math.inf).masked_fill(is_empty, 0.0)
    kept = mask if empty == 'zeros' else mask | is_empty
    shares: Tensor = wide.softmax(dim)
    return shares.masked_fill(~kept, 0.0).to(scores.dtype)


class _WidenContext(Protocol):
    """The context of :class:`_Widen`.

    Attributes:
        dtype: The dtype of the input.
    """

    dtype: torch.dtype


class _Widen(torch.autograd.Function):
    """Conversion to float32, which limits the gradient to the input's dtype.

    The backward pass of a plain conversion would overflow to Inf.
    """

    # torch.func (vmap, jacrev) needs the rule and a separate setup_context.
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        """Convert to float32."""
        return x.float()

    @staticmethod
    def setup_context(
        ctx: _WidenContext, inputs: Tuple[Tensor], output: Tensor
    ) -> None:
        """Remember the dtype of the input."""
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: _WidenContext, grad: Tensor) -> Tensor:
        """Convert the gradient back, limited to the range of the dtype."""
        limit = grad.new_full((), torch.finfo(ctx.dtype).max)
        return _limit(grad, limit).to(ctx.dtype)


def widen(x: Tensor) -> Tensor:
    """Return half precision as float32 with limited gradients, else ``x``."""
    is_half = x.dtype in (torch.float16, torch.bfloat16)
    if not is_half:
        return x
    wide: Tensor = _Widen.apply(x)  # type: ignore[no-untyped-call]
    return wide


def _limit(x: Tensor, limit: Tensor) -> Tensor:
    """Clamp to [-limit, limit], but keep an Inf that is already there."""
    return torch.where(x.isinf(), x, x.clamp(-limit, limit))


def _promote(*tensors: Tensor) -> torch.dtype:
    """Return the dtype that ``torch.result_type`` returns for a division.

    Dynamo does not trace that function. A 0-dim tensor counts only if no
    other tensor is floating point.
    """
    shaped = _float_dtypes(*[tensor for tensor in tensors if tensor.dim()])
    return reduce(torch.promote_types, shaped or _float_dtypes(*tensors))


def _float_dtypes(*tensors: Tensor) -> List[torch.dtype]:
    """Return the dtypes of the floating-point tensors."""
    return [t.dtype for t in tensors if t.is_floating_point()]


def _steepest(dtype: torch.dtype) -> float:
    """Return the square root of a dtype's largest number."""
    return 2.0 ** (math.frexp(torch.finfo(dtype).max)[1] // 2)


def check_mask(mask: Tensor, where: str) -> None:
    """Refuse a mask that is not boolean: its polarity would be unclear.

    Raises:
        GuardConfigError: If the mask is not boolean.
    """
    check_value(
        mask.dtype is torch.bool,
        f'the dtype of the mask of {where}',
        mask.dtype,
        'torch.bool, True where a place takes part: of ones and zeros '
        '`mask.bool()`, of an additive mask `mask == 0`',
    )
