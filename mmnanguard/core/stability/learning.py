"""The evidence of the losses: whether a run is harmed by its updates."""

from statistics import median_low
from typing import NamedTuple, Optional, Sequence

__all__ = ['Losses', 'read_losses']

# Losses that are compared: those of ten updates with those of ten before.
NUM_COMPARED = 20
LEAST_COMPARED = 3
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


def read_losses(
    losses: Sequence[float], first: Optional[float]
) -> Optional[Losses]:
    """Return the level of the losses; None if too few are known.

    Args:
        losses: The finite losses of the last committed updates, oldest first.
        first: The level at the start.
    """
    compared = losses[-NUM_COMPARED:]
    half = len(compared) // 2
    if first is None or half < LEAST_COMPARED:
        return None
    before, now = compared[:half], compared[-half:]
    return Losses(first, median_low(before), median_low(now))
