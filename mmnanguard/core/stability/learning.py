"""The evidence of the losses: whether a run is harmed by its updates."""

import math
from statistics import median_low
from typing import List, NamedTuple, Optional, Sequence

__all__ = ['Losses', 'first_loss', 'read_losses']

# Losses that are compared: those of ten updates with those of ten before.
NUM_COMPARED = 20
NUM_FIRST = 3
# Share of the first loss by which a loss has to fall or rise to be noticed.
LEAST_CHANGE = 0.05


class Losses(NamedTuple):
    """The level of the losses beside that of the start.

    Attributes:
        first: The median of the first losses.
        before: The median of the losses before the last ones.
        now: The median of the last losses.
    """

    first: float
    before: float
    now: float

    @property
    def is_harmed(self) -> bool:
        """Whether the loss has not fallen since the start, or rises."""
        change = LEAST_CHANGE * abs(self.first)
        has_fallen = self.now <= self.first - change
        return not has_fallen or self.now > self.before + change


def first_loss(losses: Sequence[float]) -> Optional[float]:
    """Return the median of the first losses; None if there are too few.

    Args:
        losses: The losses of all committed updates, oldest first.
    """
    first = finite(losses)[:NUM_FIRST]
    return median_low(first) if len(first) == NUM_FIRST else None


def read_losses(
    losses: Sequence[float], first: Optional[float]
) -> Optional[Losses]:
    """Return the level of the losses; None if too few are known.

    Args:
        losses: The losses of the last committed updates, oldest first.
        first: The level at the start.
    """
    compared = finite(losses)[-NUM_COMPARED:]
    half = len(compared) // 2
    if first is None or half < NUM_FIRST:
        return None
    before, now = compared[:half], compared[-half:]
    return Losses(first, median_low(before), median_low(now))


def finite(losses: Sequence[float]) -> List[float]:
    """Return the losses that are finite."""
    return [loss for loss in losses if math.isfinite(loss)]
