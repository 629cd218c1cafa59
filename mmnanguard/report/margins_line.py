"""The line that says how far a run stayed from its limits."""

import math
from typing import Optional

from mmnanguard.core.stability.margins import on_scale
from mmnanguard.core.stability.monitor import NUM_GRADS
from mmnanguard.core.stability.sample import LIMITS

from .read_samples import Samples
from .read_scalars import Curve

__all__ = ['bits_below', 'describe_margins']

FLOAT16 = LIMITS['float16']
SMALLEST = 1e-100  # gradient that a run may have; odd rows have others


def describe_margins(samples: Samples, is_healthy: bool = True) -> str:
    """Return the least margins of a run in a line; '' without samples.

    Args:
        samples: The samples of the run.
        is_healthy: Whether the line says if the loss scale is right. The
            gradients of a sick run do not tell.
    """
    parts = []
    least, where = math.inf, ''
    for module, curve in samples.half.items():
        bits = bits_below(max(curve.values))
        if bits < least:
            least = bits
            iter_ = curve.iters[curve.values.index(max(curve.values))]
            where = f"('{module}', iteration {iter_:,})"
    if where:
        parts.append(f'least headroom {least:.1f} bits {where}')
    numbers = samples.numbers
    ratio = largest_of(numbers.get('update_ratio'))
    if ratio is not None:
        parts.append(f'update ratio up to {100 * ratio:.2g} %')
    logits = largest_of(numbers.get('logits'))
    if logits is not None:
        parts.append(f'logits up to {logits:.3g}')
    grads, scales = numbers.get('scaled_grad'), numbers.get('loss_scale')
    if is_healthy and grads is not None and scales is not None:
        scale_at = dict(zip(scales.iters, scales.values))
        largest = 0.0
        last = slice(-NUM_GRADS, None)
        for iter_, grad in zip(grads.iters[last], grads.values[last]):
            # An infinite one was too large for the scale of its moment.
            if math.isfinite(grad) and scale_at.get(iter_):
                largest = max(largest, grad / scale_at[iter_])
        if SMALLEST < largest < 1 / SMALLEST:
            parts.append(on_scale(scales.values[-1], largest))
    if not parts:
        return ''
    return f'stability: {", ".join(parts)}'


def bits_below(largest: float) -> float:
    """Return the headroom of an output below float16's limit, in bits."""
    if math.isinf(largest):
        return 0.0
    return math.log2(FLOAT16) - math.log2(largest)


def largest_of(curve: Optional[Curve]) -> Optional[float]:
    """Return the largest finite value of a curve; None if there is none."""
    values = () if curve is None else curve.values
    return max(filter(math.isfinite, values), default=None)
