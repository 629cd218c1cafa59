"""The question whether a rollback has lowered the loss of a divergent run."""

from statistics import median_low
from typing import NamedTuple, Optional, Tuple

from mmengine.runner import Runner

from mmnanguard.core import GuardEvent, GuardState

from .._shared.find_guards import find_guards
from .earlier_state import EarlierState

__all__ = ['LossTrial']

# The first loss is that of the restored weights themselves. A single loss may
# be high by chance.
NUM_LOSSES = 3


class LossTrial(NamedTuple):
    """A rollback out of a divergence whose effect is not known yet.

    A loss may also rise because it has changed itself: a term is switched on,
    or the data become harder. Then it is as high for the earlier weights.

    Attributes:
        optimizer: The optimizer whose losses have risen.
        before: The state of the run before the rollback.
        limit: The loss above which the run was called divergent.
        num_steps: The commits of the optimizer until the rollback.
    """

    optimizer: str
    before: EarlierState
    limit: float
    num_steps: int

    @classmethod
    def begin(
        cls, event: GuardEvent, before: EarlierState, kept: EarlierState
    ) -> Optional['LossTrial']:
        """Return the trial of a rollback, or None if nothing can be tried.

        Args:
            event: The reason for the rollback.
            before: The state of the run before the rollback.
            kept: The state that was restored.
        """
        spike = event.spike
        if spike is None or spike['what'] != 'median_loss':
            return None
        before_state, _ = before.rules[event.optimizer]
        limit = spike['limit']
        level = kept.rules[event.optimizer][0].loss_level
        if level.start is None:
            # A state from the beginning has the first losses, which may be
            # above the limit. Half of what was learnt is beyond their noise.
            now = before_state.loss_level
            if now.start is None:
                return None
            limit = now.start + (now.start - now.best) / 2
        elif median_low(level.recent) > limit:
            return None
        return cls(event.optimizer, before, limit, before_state.num_steps)

    def losses(self, state: GuardState) -> Tuple[float, ...]:
        """Return the losses that were committed since the rollback."""
        num_losses = state.num_steps - self.num_steps
        # [-0:] would return all losses.
        return state.loss_level.recent[-num_losses:] if num_losses else ()

    def is_over(self, state: GuardState) -> bool:
        """Whether enough losses are known."""
        return len(self.losses(state)) >= NUM_LOSSES

    def has_failed(self, state: GuardState) -> bool:
        """Whether the losses since the rollback are all above the limit."""
        return min(self.losses(state), default=0.0) > self.limit

    def undo(self, runner: Runner) -> None:
        """Restore the state from before the rollback."""
        self.before.restore(runner)
        for name, guard in find_guards(runner).items():
            state, guard.clip_rule = self.before.rules[name]
            guard.state = guard.state.rollback_undone(state)

    def words(self) -> str:
        """Return the reason for undoing the rollback."""
        return (
            f'the losses of the earlier state were above {self.limit:.4g} '
            'too, so the loss has changed and not the weights; its level is '
            'learnt anew'
        )
