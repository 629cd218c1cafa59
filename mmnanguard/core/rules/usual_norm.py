"""The gradient norm that was usual before an explosion."""

import math
from statistics import median_low
from typing import Sequence

__all__ = ['usual_norm']

LEAST_BEFORE = 3  # norms
LEAST_SHARE = 1 / 4  # of the record
LEAST_RISE = 4.0  # of all norms of an explosion over the usual one
MOST_DRIFT = 2.0  # of usual norms, from their first half to the second


def usual_norm(norms: Sequence[float]) -> float:
    """Return the median norm before an explosion, or NaN if none was usual.

    The last step before the explosion is under suspicion itself, so that a
    few norms are needed. A slow explosion may fill the whole record.

    Args:
        norms: The norms of a record that ends with an explosion.
    """
    num = max(LEAST_BEFORE, int(LEAST_SHARE * len(norms)))
    if len(norms) < num:
        return math.nan
    while num < len(norms):
        if min(norms[num:]) > LEAST_RISE * median_low(norms[:num]):
            break
        num += 1
    half = num // 2
    first, last = median_low(norms[:half]), median_low(norms[half:num])
    if last > MOST_DRIFT * first:
        return math.nan
    return min(first, last)
