"""The growth of a series of numbers right up to its end."""

import math
from statistics import median_low
from typing import List, Sequence

__all__ = [
    'LEAST_BEFORE',
    'LEAST_GROWTH',
    'finite_sizes',
    'growth_of',
    'is_at_lowest',
    'is_falling',
]

# The least growth at the end of a series that counts as an explosion. Norms
# and losses of small batches have outliers, so one step needs more.
LEAST_GROWTH = 10.0
LEAST_GROWTH_OF_STEP = 100.0
LEAST_BEFORE = 3  # values that make a usual value


def finite_sizes(values: Sequence[float]) -> List[float]:
    """Return the absolute values of those values that are finite."""
    return list(map(abs, filter(math.isfinite, values)))


def is_falling(values: Sequence[float]) -> bool:
    """Whether each of several values is below the one before it."""
    pairs = zip(values, values[1:])
    return len(values) > 2 and all(later < value for value, later in pairs)


def is_at_lowest(values: Sequence[float]) -> bool:
    """Whether the last of several values is below all others."""
    return len(values) > 1 and values[-1] < min(values[:-1])


def growth_of(values: Sequence[float]) -> float:
    """Return the factor by which a series exploded at its end, or 0.

    Args:
        values: Absolute values, oldest first.
    """
    return max(growth_of_rise(values), growth_of_level(values))


def growth_of_rise(values: Sequence[float]) -> float:
    """Return the growth of values that rise up to the last one, or 0."""
    start = max(len(values) - 1, 0)
    while start > 0 and values[start - 1] < values[start]:
        start -= 1
    before = values[:start]
    highest = max(before, default=0.0)
    num_steps = len([v for v in values[start + 1 :] if v > highest])
    if num_steps == 0:
        return 0.0
    base = values[start]
    # A rise that begins at a value that is low by chance is no explosion.
    if before:
        base = max(base, median_low(before))
    needed = LEAST_GROWTH
    if num_steps == 1:
        needed = LEAST_GROWTH_OF_STEP
    # From zero, any value would be a rise without bounds.
    if base == 0 or values[-1] < needed * base:
        return 0.0
    return values[-1] / base


def growth_of_level(values: Sequence[float]) -> float:
    """Return the growth of the level that the last two values have, or 0.

    Values that swing do not rise step by step.
    """
    before, level = values[:-2], min(values[-2:], default=0.0)
    if len(before) < LEAST_BEFORE:
        return 0.0
    base = median_low(before)
    if base == 0 or level < LEAST_GROWTH * base:
        return 0.0
    return level / base
