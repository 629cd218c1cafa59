"""The micro-batches since the last update, kept for a replay.

All hooks of a runner that may replay share one :class:`Window`, so that a
batch is kept once.
"""

from typing import Iterable, List, NamedTuple, Optional, Set
from weakref import ReferenceType, WeakKeyDictionary, ref

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmnanguard.numerics.base.rng_state import RngState, read_rng
from mmnanguard.numerics.guard_protocol import GuardProtocol

from .._shared.find_guards import find_guards
from .._shared.hook_arguments import DataBatch, Outputs
from .batch_keeper import BatchKeeper, KeptBatch

__all__ = ['MicroBatch', 'Window', 'WindowHook']


class MicroBatch(NamedTuple):
    """All that a replay of one iteration needs.

    Attributes:
        batch_idx: The index of the batch in its epoch, counted from 0.
        kept: The batch as the data loader returned it.
        rng: The states of the random generators before the iteration.
        iter: The iteration, counted from 0 as in MMEngine.
    """

    batch_idx: int
    kept: KeptBatch
    rng: RngState
    iter: int = 0


class Window:
    """The micro-batches since the last update.

    Attributes:
        batches: The micro-batches, oldest first.
    """

    def __init__(self) -> None:
        self.batches: List[MicroBatch] = []
        self._keeper = BatchKeeper()
        self._iter: Optional[int] = None
        self._num_steps = 0
        self._is_compared = False

    def is_exact(self, runner: Runner) -> bool:
        """Whether a replay begins with the batches and weights of training.

        It does not if a batch has changed, or if any optimizer has made an
        update since the window began.
        """
        is_kept = all(batch.kept.is_exact for batch in self.batches)
        return is_kept and count_steps(runner) == self._num_steps

    def keep(
        self, runner: Runner, batch_idx: int, data_batch: DataBatch
    ) -> None:
        """Keep the batch of an iteration that is about to begin.

        Each hook that shares the window calls this, and the first call of an
        iteration counts.
        """
        if self._iter == runner.iter:
            return
        self._iter, self._is_compared = runner.iter, False
        guards = find_guards(runner).values()
        # Several optimizers may accumulate over windows of different length,
        # and a new window begins when none of theirs is open.
        if not any(guard.is_open for guard in guards):
            self.batches = []
            self._num_steps = count_steps(runner)
        self._drop_abandoned(guards)
        kept = self._keeper.keep(data_batch)
        self.batches.append(
            MicroBatch(batch_idx, kept, read_rng(), runner.iter)
        )

    def _drop_abandoned(self, guards: Iterable[GuardProtocol]) -> None:
        """Drop the batches of iterations that had no backward pass."""
        used: Set[int] = set()
        for guard in guards:
            used.update(guard.window.iterations)
        # A loop may call loss.backward() past the wrapper.
        if used:
            self.batches = [b for b in self.batches if b.iter in used]

    def compare(self, data_batch: DataBatch) -> None:
        """Compare the batch after an iteration.

        See :meth:`BatchKeeper.compare`; the first call of an iteration counts.
        """
        if self.batches and not self._is_compared:
            self._is_compared = True
            self._keeper.compare(data_batch, self.batches[-1].kept)


def count_steps(runner: Runner) -> int:
    """Return the number of updates that all guards have committed."""
    guards = find_guards(runner).values()
    return sum(guard.state.num_steps for guard in guards)


# Weak on both sides: a window must not outlive the hooks that use it, nor
# keep their runner alive.
_WINDOWS: 'WeakKeyDictionary[Runner, ReferenceType[Window]]' = (
    WeakKeyDictionary()
)


def window_of(runner: Runner) -> Window:
    """Return the window that all hooks of a runner share."""
    reference = _WINDOWS.get(runner)
    # The hooks that used the window may be gone.
    window = reference() if reference else None
    if window is None:
        window = Window()
        _WINDOWS[runner] = ref(window)
    return window


class WindowHook(Hook):
    """Base class of hooks that may replay a window."""

    # After all hooks that may change the batch before training sees it.
    priority = 'LOWEST'
    _window: Optional[Window] = None

    @property
    def is_spent(self) -> bool:
        """Whether this hook no longer needs batches."""
        return False

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DataBatch = None
    ) -> None:
        """Keep the batch, unless this hook needs none any more."""
        if self.is_spent:
            # The last hook that drops its window frees the batches.
            self._window = None
        else:
            self._window = window_of(runner)
            self._window.keep(runner, batch_idx, data_batch)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DataBatch = None,
        outputs: Outputs = None,
    ) -> None:
        """Learn whether the iteration has changed the batch."""
        if self._window:
            self._window.compare(data_batch)
