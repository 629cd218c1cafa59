"""The losses with which a run began and ended."""

import math
from statistics import median_low
from typing import NamedTuple, Optional, Sequence

from .recent_commits import Commit

__all__ = ['LossSpan', 'loss_span']

NUM_LAST = 8
MOST_NOISE = 10.0  # of a first loss over the one before


class LossSpan(NamedTuple):
    """The losses with which a run began and ended.

    Attributes:
        first: The highest of the first losses, without an explosion.
        last: The median of the last ones.
    """

    first: float
    last: float


def loss_span(
    first_losses: Sequence[float], commits: Sequence[Commit]
) -> Optional[LossSpan]:
    """Return the first and the last loss of a run, or None.

    Args:
        first_losses: The losses of the first commits, all finite.
        commits: The last commits, oldest first.
    """
    last = []
    for commit in commits[-NUM_LAST:]:
        if math.isfinite(commit.loss):
            last.append(commit.loss)
    if not first_losses or not last:
        return None
    first = first_losses[0]
    for loss in first_losses:
        # Only the first loss is without any step that may have exploded.
        if first < loss <= MOST_NOISE * abs(first):
            first = loss
    return LossSpan(first, median_low(last))
