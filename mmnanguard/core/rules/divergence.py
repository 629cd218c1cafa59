from dataclasses import dataclass, replace
from statistics import median_low
from typing import Any, Mapping, Optional, Tuple

from ..checks import check_value, is_count, is_finite_number
from .spike import Spike

__all__ = ['Divergence', 'LossLevel']


@dataclass(frozen=True)
class LossLevel:
    """How high the losses of committed updates are, were at first, and were
    at best; each the (low) median of a window, which a few odd batches do not
    move.

    Attributes:
        window: Updates; 0 keeps nothing.
        recent: Losses of the last window, oldest first.
        start: Median of the first window; None until it is full.
        best: Lowest median so far.
        spread: Between median and upper quartile of the window that had it,
            or of the next one, whichever is less.
        age: Updates since then.
        peak: Highest median since then.
        swing: The largest rise from a lowest median that was healthy, as a
            lower one came after it.
    """

    window: int = 0
    recent: Tuple[float, ...] = ()
    start: Optional[float] = None
    best: float = 0.0
    spread: float = 0.0
    age: int = 0
    peak: float = 0.0
    swing: float = 0.0

    def after(self, loss: float) -> 'LossLevel':
        """With the loss of one committed update more."""
        if self.window == 0:
            return self
        recent = (*self.recent, loss)[-self.window :]
        if len(recent) < self.window:
            return replace(self, recent=recent)
        now = median_low(recent)
        spread = sorted(recent)[self.window * 3 // 4] - now
        if self.start is not None and now >= self.best:
            age = self.age + 1
            if age == self.window:  # a steep fall is no noise
                spread = min(spread, self.spread)
            else:
                spread = self.spread
            peak = max(now, self.peak)
            return replace(
                self, recent=recent, spread=spread, age=age, peak=peak
            )
        swing = self.swing
        if self.start is not None:
            swing = max(swing, self.peak - self.best)
        return replace(
            self,
            recent=recent,
            start=now if self.start is None else self.start,
            best=now,
            spread=spread,
            age=0,
            peak=now,
            swing=swing,
        )

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any], window: int) -> 'LossLevel':
        """Of a checkpoint; medians of another window are not comparable."""
        if saved.get('window') != window:
            return cls(window)
        return cls(**{**saved, 'recent': tuple(saved['recent'])})


@dataclass(frozen=True)
class Divergence:
    """``optim_wrapper.guard.divergence=dict(...)``: what was learnt is being
    lost, with numbers that are all finite.

    The median loss of the last ``window`` committed updates is compared with
    that of the first ones and with the lowest so far. Nothing is judged
    before learning is plain to see: until the limit is two standard deviations
    of single losses above the lowest median, and twice as far as medians
    have risen before and come back.

    Attributes:
        window: Committed updates.
        share: Of the way from the lowest median back to the first one; the
            run diverges above it, exclusive.

    Raises:
        GuardConfigError: For a value out of range.
    """

    window: int = 32
    share: float = 0.7

    def __post_init__(self) -> None:
        where = 'optim_wrapper.guard.divergence'
        check_value(
            is_count(self.window, least=2),
            f'{where}.window',
            self.window,
            'an integer of at least 2',
        )
        check_value(
            is_finite_number(self.share) and self.share > 0,
            f'{where}.share',
            self.share,
            'a number above 0',
        )

    def find(self, level: LossLevel, loss: float) -> Optional[Spike]:
        """What is too high with the loss of one clean update more."""
        if level.start is None:
            return None
        limit = level.best + self.share * (level.start - level.best)
        now = median_low((*level.recent[1:], loss))
        # Of a normal distribution 2 sigma are 3 times this spread.
        noise = max(3 * level.spread, 2 * level.swing)
        if level.best + noise < limit < now:
            return Spike('median_loss', now, limit, level.best)
        return None
