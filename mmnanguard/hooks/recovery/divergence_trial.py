"""The question whether weights or the loss itself have made losses rise."""

import math
from statistics import median_low
from typing import List, NamedTuple, Optional, Sequence, Tuple

from mmengine.dist import all_gather_object
from mmengine.runner import Runner

from mmnanguard.numerics.base.rng_state import read_rng
from mmnanguard.numerics.checkpoints.state_copy import StateCopy
from mmnanguard.numerics.guard_protocol import GuardProtocol
from mmnanguard.numerics.probe.replay import Pass, Setting

from .._shared.find_guards import find_wrappers
from .._shared.hook_arguments import DataBatch
from ..replay.batch_keeper import KeptBatch
from ..replay.window import MicroBatch
from ..replay.window_replay import WindowReplay
from .earlier_state import EarlierState, buffer_places, tensors_of

__all__ = ['DivergenceTrial', 'fails_anyway']

# A single loss may be high by chance.
NUM_BATCHES = 3


class Losses(NamedTuple):
    """The losses of one batch, averaged over the ranks.

    Attributes:
        earlier: The loss of the earlier weights.
        present: The loss of the present weights.
    """

    earlier: float
    present: float


class DivergenceTrial:
    """Compares present weights with earlier ones on the next batches.

    A loss may also rise because it has changed itself: a term is switched on,
    or the data become harder. Then it is as high for the earlier weights.

    Args:
        optimizer: The optimizer whose losses have risen.
        first_bad: The iteration at which they began to rise.
        earlier: A state from before the rise.
    """

    def __init__(
        self, optimizer: str, first_bad: int, earlier: EarlierState
    ) -> None:
        self.optimizer = optimizer
        self.first_bad = first_bad
        self._earlier = earlier
        self._losses: List[Losses] = []

    @property
    def is_over(self) -> bool:
        """Whether enough batches were tried."""
        return len(self._losses) == NUM_BATCHES

    def run(
        self, runner: Runner, batch_idx: int, data_batch: DataBatch
    ) -> bool:
        """Try the batch of an iteration that is about to begin.

        Leaves no trace. Collective, and syncs the device.

        Returns:
            Whether that was possible.
        """
        batch = MicroBatch(
            batch_idx, KeptBatch(data_batch), read_rng(), runner.iter
        )
        losses: Optional[Losses] = None
        try:
            present, earlier = run_both(runner, batch, self._earlier)
            losses = Losses(
                earlier.losses[self.optimizer], present.losses[self.optimizer]
            )
        except Exception:  # the user's model may raise anything
            runner.logger.exception('mmnanguard: cannot replay the batch')
        answers = all_gather_object(losses)
        if None in answers:
            return False
        earlier_losses, present_losses = zip(*answers)
        size = len(answers)
        self._losses.append(
            Losses(sum(earlier_losses) / size, sum(present_losses) / size)
        )
        return True

    def blames_weights(self, guard: GuardProtocol) -> bool:
        """Whether going back would lower the losses.

        It would not if the earlier weights have losses far above their own
        level, or if the present weights are the better ones.

        Args:
            guard: The guard of the optimizer.
        """
        rule, level = guard.policy.divergence, guard.state.loss_level
        # Only a rule finds a rise, above the first level.
        assert rule is not None
        assert level.start is not None
        learnt = level.start - level.best
        limit = level.best + rule.share * learnt
        then = self._earlier.rules[self.optimizer][0].loss_level
        if then.start is None or median_low(then.recent) > limit:
            # The first losses may be above the limit. Half of what was learnt
            # is beyond their noise.
            limit = level.start + learnt / 2
        earlier, present = zip(*self._losses)
        mean = math.fsum(earlier) / NUM_BATCHES
        # The most that training since then can have won on these batches, and
        # what the present weights still have of it.
        most = mean - level.best
        known = mean - math.fsum(present) / NUM_BATCHES
        return min(earlier) <= limit and known < most / 2

    def is_recovering(self, guard: GuardProtocol) -> bool:
        """Whether the losses come down by themselves.

        So they do after a head was initialized anew, for example. They have
        lost half of their rise already.

        Args:
            guard: The guard of the optimizer.
        """
        level = guard.state.loss_level
        now = median_low(level.recent)
        height = median_low([x for x in level.recent if x >= now])
        _, present = zip(*self._losses)
        mean = math.fsum(present) / NUM_BATCHES
        return mean < level.best + (height - level.best) / 2

    def restart(self) -> None:
        """Forget the batches so far, to try the next ones."""
        self._losses = []

    def words(self) -> str:
        """Return the reason for not going back."""
        earlier, present = zip(*self._losses)
        return (
            f'on the same batches, the weights of iteration '
            f'{self._earlier.iter} have losses of {numbers(earlier)}, the '
            f'present ones of {numbers(present)}, so the loss itself has '
            'changed'
        )


def run_both(
    runner: Runner, batch: MicroBatch, state: EarlierState
) -> Tuple[Pass, Pass]:
    """Run a batch with the present weights, then with earlier ones.

    Leaves no trace.
    """
    wrappers = find_wrappers(runner)
    settings = {}
    for name, wrapper in wrappers.items():
        settings[name] = Setting(getattr(wrapper, 'cast_dtype', None))
    replay = WindowReplay(runner.model, wrappers, settings, [batch])
    present = replay.run()
    # The optimizer is not used, so it stays as it is.
    tensors, places = tensors_of(runner), buffer_places(runner)
    before = StateCopy.of(tensors, {})
    copy = state.copy
    assert isinstance(copy, StateCopy)
    try:
        copy.restore_tensors(tensors, places)
        earlier = replay.run()
    finally:
        before.restore_tensors(tensors_of(runner), places)
    return present, earlier


def fails_anyway(
    runner: Runner, batch_idx: int, data_batch: DataBatch, state: EarlierState
) -> bool:
    """Whether a batch is not finite, with earlier weights either.

    Going back would not help then. Leaves no trace. Collective, and syncs the
    device.
    """
    batch = MicroBatch(
        batch_idx, KeptBatch(data_batch), read_rng(), runner.iter
    )
    fails: Optional[bool] = None
    try:
        present, earlier = run_both(runner, batch, state)
        fails = not (present.is_finite or earlier.is_finite)
    except Exception:  # the user's model may raise anything
        runner.logger.exception('mmnanguard: cannot replay the batch')
    answers = all_gather_object(fails)
    return None not in answers and any(answers)


def numbers(losses: Sequence[float]) -> str:
    """Return losses as text."""
    return ', '.join(map('{:.3g}'.format, losses))
