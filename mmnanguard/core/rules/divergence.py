"""Divergence: the loss climbs back with numbers that are all finite."""

import math
from dataclasses import dataclass, replace
from statistics import median_low
from typing import Any, Mapping, Optional, Sequence, Tuple

from ..checks import check_value, is_count, is_finite_number
from .recent_commits import Commit, find_growth_of_norms
from .spike import Spike

__all__ = ['Divergence', 'LossLevel']


@dataclass(frozen=True)
class LossLevel:
    """The present, first and best level of the losses of committed updates.

    A level is the low median of a window. A few odd batches do not move it.

    Attributes:
        window: Number of updates in a window; 0 if the rule is off and nothing
            is kept.
        recent: Losses of the last window, oldest first.
        start: Median of the first window; None until the window is full.
        best: Lowest median so far.
        spread: Distance from the median to the upper quartile, in the window
            with the lowest median or in the next window, whichever is less.
        age: Number of updates since the lowest median.
        peak: Highest median since the lowest one.
        swing: The largest rise above a lowest median that proved healthy,
            because a lower median came later.
        needs_trial: Whether a rollback waits until a trial has shown that
            earlier weights have lower losses. ``RollbackHook`` sets it.
    """

    window: int = 0
    recent: Tuple[float, ...] = ()
    start: Optional[float] = None
    best: float = 0.0
    spread: float = 0.0
    age: int = 0
    peak: float = 0.0
    swing: float = 0.0
    needs_trial: bool = False

    def after(self, *losses: float) -> 'LossLevel':
        """Return the level after the losses of more committed updates.

        After several updates, only the window that ends with the last one has
        a median. There should be far fewer of them than ``window``.
        """
        if self.window == 0 or not losses:
            return self
        recent = (*self.recent, *losses)[-self.window :]
        if len(recent) < self.window:
            return replace(self, recent=recent)
        ordered = sorted(recent)
        now = ordered[(self.window - 1) // 2]
        # The noise above the median, because a divergence is a rise.
        spread = ordered[self.window * 3 // 4] - now
        if self.start is not None and now >= self.best:
            age = self.age + len(losses)
            # The window with the lowest median may hold a steep fall, which is
            # no noise. The next full window does not.
            if self.age < self.window <= age:
                spread = min(spread, self.spread)
            else:
                spread = self.spread
            peak = max(now, self.peak)
            return replace(
                self, recent=recent, spread=spread, age=age, peak=peak
            )
        # A new lowest median: the rise before it proved healthy.
        start, swing = self.start, self.swing
        if start is None:
            start = now
        else:
            swing = max(swing, self.peak - self.best)
        return replace(
            self,
            recent=recent,
            start=start,
            best=now,
            spread=spread,
            age=0,
            peak=now,
            swing=swing,
        )

    def accepted(self) -> 'LossLevel':
        """Return the level after a rise that was no divergence.

        The present median counts as the lowest one. If it is above the first
        one, this becomes the first one as well.
        """
        now = median_low(self.recent)
        start = self.start
        if start is not None and now >= start:
            start = None
        return replace(self, start=start, best=now, age=0, peak=now)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any], window: int) -> 'LossLevel':
        """Return the saved level.

        If the saved window has another length, the level starts anew.
        """
        # Medians of windows of different lengths cannot be compared.
        if saved.get('window') != window:
            return cls(window)
        return cls(**{**saved, 'recent': tuple(saved['recent'])})


@dataclass(frozen=True)
class Divergence:
    """The rule for divergence, ``optim_wrapper.guard.divergence=dict(...)``.

    A run diverges when it loses what it has learnt while all numbers stay
    finite. The median loss of the last ``window`` committed updates is
    compared with the first median and with the lowest median. Nothing is
    judged before learning is plain to see: the limit must be two standard
    deviations of single losses above the lowest median, and twice as far
    above it as any earlier rise after which the median fell again.

    Attributes:
        window: Number of committed updates in a window.
        share: The limit, exclusive, as a share of the way from the lowest
            median back to the first median.
        needs_norms: Whether the gradient norms must have exploded as well.
            With several optimizers they must in any case, because the losses
            of adversaries rise and fall against each other.

    Raises:
        GuardConfigError: For a value out of range.
    """

    window: int = 32
    share: float = 0.7
    needs_norms: bool = False

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
        check_value(
            isinstance(self.needs_norms, bool),
            f'{where}.needs_norms',
            self.needs_norms,
            'True or False',
        )

    def find(
        self,
        level: LossLevel,
        loss: float,
        commits: Sequence[Commit] = (),
        grad_norm: float = math.nan,
    ) -> Optional[Spike]:
        """Return the rise of the median, if the run diverges with this loss.

        Args:
            level: The level before this update.
            loss: The loss of this clean update.
            commits: The last commits, oldest first.
            grad_norm: The gradient norm of this update.
        """
        recent = (*level.recent[1:], loss)
        return self._judge(level, recent, commits, grad_norm)

    def find_risen(
        self, level: LossLevel, commits: Sequence[Commit]
    ) -> Optional[Spike]:
        """Return the rise of the median that was committed, or None.

        Args:
            level: The level after the last commit.
            commits: The commits, oldest first.
        """
        return self._judge(level, level.recent, commits, math.nan)

    def _judge(
        self,
        level: LossLevel,
        recent: Sequence[float],
        commits: Sequence[Commit],
        grad_norm: float,
    ) -> Optional[Spike]:
        # The first window is not full yet.
        if level.start is None:
            return None
        limit = level.best + self.share * (level.start - level.best)
        now = median_low(recent)
        # The upper quartile of a normal distribution is 0.674 sigma above its
        # median, so 2 sigma are 3 times this spread.
        noise = max(3 * level.spread, 2 * level.swing)
        # A NaN makes the comparison False; a loss of NaN has its own cause.
        if not level.best + noise < limit < now:
            return None
        if self.needs_norms and not find_growth_of_norms(commits, grad_norm):
            return None
        return Spike('median_loss', now, limit, level.best)
