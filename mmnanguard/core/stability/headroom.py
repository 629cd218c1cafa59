"""The countdown of a module's outputs to the limit of their dtype."""

import math
from typing import List, NamedTuple, Optional, Sequence, Tuple

__all__ = ['MAX_POINTS', 'Countdown', 'Point', 'count_down']

# The iteration of a sample, from 1, and the headroom of a module in bits.
Point = Tuple[int, float]

# A rise in four samples in a row is hardly chance. Every second and every
# fourth sample is looked at as well: a slow rise needs a long time to be seen.
NUM_RISING = 4
STRIDES = (1, 2, 4)
MAX_POINTS = (NUM_RISING - 1) * STRIDES[-1] + 1
# A trend is carried on for this many times the time in which it was seen.
HORIZON = 10 / 3


class Countdown(NamedTuple):
    """The growth of a module's outputs towards a limit.

    Attributes:
        doubles: Number of iterations in which the outputs double.
        left: Number of iterations until the limit is reached.
        level: The time that the trend is carried on, divided by ``left``: the
            limit is in sight from 1 on.
    """

    doubles: float
    left: float
    level: float


def count_down(points: Sequence[Point]) -> Optional[Countdown]:
    """Return the countdown of a module, or None if its outputs do not grow.

    Args:
        points: The last samples of the module, oldest first; more than
            ``MAX_POINTS`` are of no use.
    """
    best: Optional[Countdown] = None
    for stride in STRIDES:
        newest_first = list(points)[::-1][::stride][:NUM_RISING]
        growth = growth_of(newest_first[::-1])
        # The shortest trend that has the limit in sight is the present one.
        if growth is not None and (best is None or best.level < 1):
            best = growth
    return best


def growth_of(points: List[Point]) -> Optional[Countdown]:
    """Return the countdown by points that must all rise, or None."""
    if len(points) < NUM_RISING:
        return None
    speeds = []
    for before, after in zip(points, points[1:]):
        speeds.append((before[1] - after[1]) / (after[0] - before[0]))
    time = points[-1][0] - points[0][0]
    speed = (points[0][1] - points[-1][1]) / time
    # A rise that levels off reaches nothing.
    if min(speeds) <= 0 or speeds[-1] < speed / 2:
        return None
    left = points[-1][1] / speed
    level = math.inf
    if left > 0:
        level = HORIZON * time / left
    return Countdown(1 / speed, left, level)
