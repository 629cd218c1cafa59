"""The decision whether a rollback lowers the learning rate."""

from typing import NamedTuple, Optional, Sequence, Tuple

from mmnanguard.core import GuardEvent, GuardState
from mmnanguard.core.causes import CAUSES
from mmnanguard.core.rules.recent_commits import Growth, find_growth
from mmnanguard.core.step_advice import bad_at_any_rate, maximized
from mmnanguard.numerics.guard_protocol import GuardProtocol

__all__ = ['RateEvidence', 'is_of_rate', 'lowered']


class RateEvidence(NamedTuple):
    """The evidence that a learning rate was too high.

    Attributes:
        growth: The explosion of losses and gradient norms before the trouble.
        has_diverged: Whether the loss has lost what was learnt.
        has_overflown: Whether gradients grew until their norm overflowed.
        uphill: Settings of the optimizer that make weights grow at any
            learning rate, in words.
    """

    growth: Optional[Growth]
    has_diverged: bool
    has_overflown: bool = False
    uphill: Sequence[str] = ()

    @classmethod
    def of(cls, event: GuardEvent, state: GuardState) -> 'RateEvidence':
        """Return the evidence that the guard's memory holds.

        Args:
            event: The reason for a rollback.
            state: The state of the guard before the rollback.
        """
        growth = find_growth(state.recent_commits, event.loss, event.grad_norm)
        facts = CAUSES[event.cause]
        is_gradual = facts.is_gradual
        # A lower rate helps against too much decay, so that is left out.
        uphill = bad_at_any_rate(event.step)
        # A loss may rise on purpose, as long as it does not explode.
        if growth or is_gradual:
            uphill += maximized(event.step)
        # Norms that overflow from the start are not due to any step.
        has_overflown = facts.is_explosion and bool(state.recent_commits)
        return cls(growth, is_gradual, has_overflown, uphill)

    def __bool__(self) -> bool:
        is_known = self.has_diverged or self.has_overflown
        return is_known or self.growth is not None

    @property
    def blames_rate(self) -> bool:
        """Whether a lower rate can help; not against one odd batch.

        A negative rate that is smaller goes uphill as well.
        """
        growth = self.growth
        is_other = growth and (growth.is_uphill or growth.jump > 0)
        return bool(self) and not (is_other or self.uphill)

    def words(self, recovery: Optional[int]) -> str:
        """Return the reason why the rate was lowered or kept.

        Args:
            recovery: The number of commits until the rate is back, if it
                comes back.
        """
        if self.uphill:
            return f'the optimizer has {", and ".join(self.uphill)}'
        if not self:
            return 'neither losses nor gradient norms had exploded before'
        if self.growth is not None and self.growth.is_uphill:
            return f'it is negative: {self.growth.words()} before'
        if self.growth is not None and not self.blames_rate:
            return f'one batch jumped: {self.growth.words()} before'
        reason = 'the loss has risen'
        if self.has_overflown:
            reason = 'finite gradients grew until their norm overflowed'
        if self.growth is not None:
            reason = f'{self.growth.words()} before'
        return f'{reason}; back in {recovery} commits' if recovery else reason


def lowered(
    present: float, factor: float, recovery: Optional[int]
) -> Tuple[float, float]:
    """Return the factor on learning rates and its growth with each commit.

    Args:
        present: The present factor, which an earlier rollback may have
            lowered.
        factor: The factor of this rollback.
        recovery: The number of commits until the factor is 1 again; None
            means never.
    """
    present *= factor
    if recovery is None:
        return present, 0.0
    return present, (1 - present) / recovery


def is_of_rate(guard: GuardProtocol, event: GuardEvent) -> bool:
    """Whether a rollback is due to the share of skips, not to a streak."""
    most = guard.policy.max_consecutive_skips
    is_streak = most is not None and event.consecutive_skips >= most
    return not is_streak and not CAUSES[event.cause].ends_run
