"""The rise of a loss that never came down again, although it is finite."""

import math
from typing import NamedTuple, Optional

from mmnanguard.core.rows.end_row import EndRow

from .read_scalars import Curve

__all__ = ['Rise', 'find_rise', 'find_rise_at_end']

# A loss has exploded if it ends at so many times its first value. One that
# begins at almost 0, or a value that an agent learns, may rise a lot.
EXPLOSION = 1e5
LEAST_LOSS = 1e3
LEAST_POINTS = 3
# A loss that ends so much above its first value may still rise by design.
HIGH = 10.0
LEAST_HIGH = 10.0
# A density or a reward may bring a negative loss to -1e3.
LEAST_LOW = 1e6


class Rise(NamedTuple):
    """The rise of a loss that never came down again, or its fall.

    Attributes:
        begin: The first value.
        end: The last value.
        since: The iteration since which the values are that high; None if
            it is not known.
    """

    begin: float
    end: float
    since: Optional[int] = None

    @property
    def is_explosion(self) -> bool:
        """Whether no loss rises that much by design."""
        return self.end > max(EXPLOSION * abs(self.begin), LEAST_LOSS)

    @property
    def words(self) -> str:
        """The numbers in words."""
        times = ''
        if self.begin != 0:
            factor = abs(self.end / self.begin)
            where = 'above' if self.end > self.begin else 'below'
            times = f'{factor:,.0f} times {where} its start: '
            if factor >= EXPLOSION:
                times = f'{factor:.1g} times {where} its start: '
        return f'{times}{self.begin:.3g} at first, {self.end:.3g} at the end'


def find_rise(curve: Optional[Curve]) -> Optional[Rise]:
    """Return the rise of a curve that exploded up to its end, or None."""
    if curve is None or len(curve.values) < LEAST_POINTS:
        return None
    begin, end = curve.values[0], curve.values[-1]
    limit = EXPLOSION * abs(begin)
    since = None
    for iter_, value in zip(curve.iters, curve.values):
        # Not <=, which is False for NaN.
        if not value > limit:
            since = None
        elif since is None:
            since = iter_
    rise = Rise(begin, end, since)
    if since is None or not rise.is_explosion or end == math.inf:
        return None
    return rise


def find_rise_at_end(row: Optional[EndRow]) -> Optional[Rise]:
    """Return the rise or fall from a run's first updates to its last, or None.

    The first logged value may be from after an explosion.

    Args:
        row: The row of the run's end.
    """
    if row is None:
        return None
    rises = []
    for name, begin in row.first_losses.items():
        end = row.last_losses.get(name, math.nan)
        # Not <=, which is False for NaN.
        is_high = end > max(HIGH * abs(begin), LEAST_HIGH)
        if is_high or end < -max(EXPLOSION * abs(begin), LEAST_LOW):
            rises.append(Rise(begin, end))
    exploded = [rise for rise in rises if rise.is_explosion]
    if exploded:
        return exploded[0]
    # The losses of adversaries rise against each other.
    if rises and len(row.first_losses) == 1:
        return rises[0]
    return None
