"""Spikes: numbers that are finite and far above their recent values."""

import math
from dataclasses import dataclass
from typing import NamedTuple, Optional, Sequence

from ..checks import check_value, is_count, is_finite_number
from .observation import Observation

__all__ = ['Spike', 'SpikePolicy']

ACTIONS = ('skip', 'clip')
# The least standard deviation, as a share of the mean. Without it any number
# would be a spike in a series that hardly varies.
LEAST_SHARE = 1e-3


class Spike(NamedTuple):
    """A number far above its recent values.

    Attributes:
        what: The name of the number: 'grad_norm', 'loss', or 'median_loss' for
            a divergence.
        value: The number.
        limit: The limit that ``value`` exceeds.
        mean: The mean of the recent values; NaN if the limit is a fixed
            number. For a divergence, the lowest median.
    """

    what: str
    value: float
    limit: float
    mean: float = math.nan

    @property
    def limit_is_fixed(self) -> bool:
        """Whether the limit does not depend on recent values."""
        return math.isnan(self.mean)


@dataclass(frozen=True)
class SpikePolicy:
    """The rule for spikes, ``optim_wrapper.guard.spike=dict(...)``.

    The gradient norm (before clipping) and the loss are each compared with
    the mean and the standard deviation of the last ``window`` committed
    updates. Rejected updates and non-finite numbers never enter the
    statistics. A clipped spike enters them with its limit.

    Attributes:
        threshold: A number is a spike if it is more than this number of
            standard deviations above the mean.
        window: Number of committed updates in the statistics.
        warmup: Number of committed updates before the first judgement; None
            means ``window``.
        action: 'skip' rejects the update. 'clip' commits the update with its
            gradients scaled down to the window's mean norm.

    Raises:
        GuardConfigError: For a value out of range.
    """

    threshold: float = 6.0
    window: int = 128
    warmup: Optional[int] = None
    action: str = 'skip'

    def __post_init__(self) -> None:
        is_limit = is_finite_number(self.threshold) and self.threshold > 0
        self._check(is_limit, 'threshold', 'a number above 0')
        is_long = is_count(self.window, least=2)
        self._check(is_long, 'window', 'an integer of at least 2')
        # The standard deviation of fewer than two numbers is 0.
        is_within = self.warmup is None or (
            is_count(self.warmup, least=2) and self.warmup <= self.window
        )
        allowed = 'None, or an integer from 2 to window'
        self._check(is_within, 'warmup', allowed)
        is_known = self.action in ACTIONS
        self._check(is_known, 'action', f'one of {", ".join(ACTIONS)}')

    def _check(self, is_right: bool, key: str, allowed: str) -> None:
        where = f'optim_wrapper.guard.spike.{key}'
        check_value(is_right, where, getattr(self, key), allowed)

    def find(
        self,
        seen: Observation,
        norms: Sequence[float],
        losses: Sequence[float],
    ) -> Optional[Spike]:
        """Return the spike of a clean update, or None.

        The gradient norm is judged before the loss.

        Args:
            seen: The facts about the update.
            norms: Gradient norms of the window, oldest first.
            losses: Losses of the window, oldest first.
        """
        for what, value, past in (
            ('grad_norm', seen.grad_norm, norms),
            ('loss', seen.loss, losses),
        ):
            if len(past) < (self.warmup or self.window):
                continue
            # fsum rounds once, so no error builds up over the window.
            mean = math.fsum(past) / len(past)
            variance = math.fsum((x - mean) ** 2 for x in past) / len(past)
            spread = max(math.sqrt(variance), LEAST_SHARE * abs(mean))
            limit = mean + self.threshold * spread
            # Written so that a NaN is a spike.
            if not value <= limit:
                return Spike(what, value, limit, mean)
        return None
