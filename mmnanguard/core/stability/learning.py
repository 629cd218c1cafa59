"""The evidence of the losses: whether a run is harmed by its updates."""

from statistics import median_low
from typing import NamedTuple, Optional, Sequence

__all__ = ['Losses', 'read_losses']

# Losses that are compared: those of ten updates with those of ten before.
NUM_COMPARED = 20
LEAST_COMPARED = 3
# Share of the first loss by which a loss has to fall or rise to be noticed.
LEAST_CHANGE = 0.05
# Times the noise by which it has to rise: medians of ten normal numbers differ
# by more in one of a hundred cases.
NOISE = 2.0


class Losses(NamedTuple):
    """The level of the losses beside that of the start.

    Attributes:
        first: The median of the first losses.
        before: The median of the losses before the last ones.
        now: The median of the last losses.
        noise: The median distance of a loss from the median of its half.
        is_early: Whether fewer than 20 losses are known, too few for a small
            fall to be seen.
    """

    first: float
    before: float
    now: float
    noise: float = 0.0
    is_early: bool = False

    @property
    def is_harmed(self) -> bool:
        """Whether the loss has not fallen since the start, or has risen."""
        least = LEAST_CHANGE * abs(self.first)
        change = max(least, NOISE * self.noise)
        has_fallen = self.now <= self.first - least
        has_risen = max(self.before, self.now) > self.first + change
        # The first losses of healthy runs are often level.
        if not has_fallen and (has_risen or not self.is_early):
            return True
        return self.now > self.before + change


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
    halves = compared[:half], compared[-half:]
    before, now = map(median_low, halves)
    distances = [abs(loss - before) for loss in halves[0]]
    distances += [abs(loss - now) for loss in halves[1]]
    noise = median_low(distances)
    return Losses(first, before, now, noise, len(compared) < NUM_COMPARED)
