"""The loss scales that fit a gradient."""

import math

from .sample import LIMITS

__all__ = ['fitting_scale', 'largest_scale']


def fitting_scale(grad: float) -> float:
    """Return the loss scale, a power of 2, that brings a gradient to 2**2.

    That is the middle between 2**-12, below which other gradients vanish,
    and 2**16, where float16 ends.

    Args:
        grad: The largest gradient, without a loss scale.
    """
    return 2.0 ** math.floor(2 - math.log2(grad))


def largest_scale(grad: float) -> float:
    """Return the largest power of 2 at which a gradient fits float16."""
    return 2.0 ** math.floor(math.log2(LIMITS['float16'] / grad))
