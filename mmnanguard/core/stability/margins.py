"""The line that says how far a healthy run is from its limits."""

import math

from .limits import LEAST_SCALED_GRAD
from .loss_scales import largest_scale
from .monitor import Monitor
from .sample import LIMITS, Sample

__all__ = ['margins']


def margins(sample: Sample, monitor: Monitor) -> str:
    """Return the margins of a run in a line; '' if nothing was measured.

    Args:
        sample: The last sample.
        monitor: The memory of the monitor.
    """
    parts = []
    bits = sample.least_bits
    # A bad update has no headroom.
    if bits is not None and math.isfinite(bits):
        parts.append(f"headroom {bits:.1f} bits ('{sample.fullest}')")
    if sample.update_ratio is not None:
        parts.append(f'update ratio {100 * sample.update_ratio:.2g} %')
    logits = max(sample.logits.values(), default=math.inf)
    if math.isfinite(logits):
        parts.append(f'logits {logits:.3g}')
    if monitor.grads:
        parts.append(on_scale(sample.loss_scale, max(monitor.grads)))
    if not parts:
        return ''
    return f'stability: {", ".join(parts)}'


def on_scale(scale: float, grad: float) -> str:
    """Return the answer to the question whether a loss scale is right.

    Args:
        scale: The loss scale.
        grad: The largest gradient of the last samples, without the loss
            scale.
    """
    scaled = scale * grad
    exponent = round(math.log2(largest_scale(grad)))
    answer = 'right'
    if scaled < LEAST_SCALED_GRAD:
        answer = 'too small'
    if scaled > LIMITS['float16']:
        answer = 'too large'
    return (
        f'loss scale {scale:g} is {answer} (largest scaled gradient '
        f'{scaled:.2g} of 65504; up to 2^{exponent} fits)'
    )
