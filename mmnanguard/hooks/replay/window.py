from typing import Any, Dict, List, NamedTuple, Optional
from weakref import ReferenceType, WeakKeyDictionary, ref

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmnanguard.numerics.base.rng_state import read_rng

from .._shared.find_guards import find_guards
from .._shared.hook_arguments import DataBatch, Outputs
from .batch_keeper import BatchKeeper, KeptBatch

__all__ = ['MicroBatch', 'Window', 'WindowHook']


class MicroBatch(NamedTuple):
    """What it takes to run one iteration again.

    Attributes:
        batch_idx: In its epoch, from 0.
        kept: As the data loader gave it.
        rng: States of the generators before it.
        iter: From 0, as MMEngine counts.
    """

    batch_idx: int
    kept: KeptBatch
    rng: Dict[str, Any]
    iter: int = 0


class Window:
    """The micro-batches since the last update, for all hooks of a runner
    that may run them again.
    """

    def __init__(self) -> None:
        self.batches: List[MicroBatch] = []
        self._keeper = BatchKeeper()
        self._iter: Optional[int] = None
        self._num_steps = 0
        self._is_compared = False

    def is_exact(self, runner: Runner) -> bool:
        """Batches are as they were, and no optimizer has moved since."""
        guards = find_guards(runner).values()
        num_steps = sum(guard.state.num_steps for guard in guards)
        return num_steps == self._num_steps and all(
            batch.kept.is_exact for batch in self.batches
        )

    def keep(
        self, runner: Runner, batch_idx: int, data_batch: DataBatch
    ) -> None:
        """Before an iteration; of several calls the first counts."""
        if self._iter == runner.iter:
            return
        self._iter, self._is_compared = runner.iter, False
        guards = find_guards(runner).values()
        if not any(guard.is_open for guard in guards):
            self.batches = []
            self._num_steps = sum(guard.state.num_steps for guard in guards)
        kept = self._keeper.keep(data_batch)
        self.batches.append(
            MicroBatch(batch_idx, kept, read_rng(), runner.iter)
        )

    def compare(self, data_batch: DataBatch) -> None:
        """After an iteration; see :meth:`BatchKeeper.compare`."""
        if self.batches and not self._is_compared:
            self._is_compared = True
            self._keeper.compare(data_batch, self.batches[-1].kept)


# Weak on both sides: a window lives as long as a hook that wants it.
_WINDOWS: 'WeakKeyDictionary[Runner, ReferenceType[Window]]' = (
    WeakKeyDictionary()
)


def window_of(runner: Runner) -> Window:
    """The one that all hooks of this runner share."""
    shared = _WINDOWS.get(runner)
    window = shared() if shared else None
    if window is None:
        window = Window()
        _WINDOWS[runner] = ref(window)
    return window


class WindowHook(Hook):
    """Base of hooks that may run a window again."""

    priority = 'LOWEST'  # the last word before the batch is trained on
    _window: Optional[Window] = None

    @property
    def is_spent(self) -> bool:
        """Need nothing be kept any more?"""
        return False

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DataBatch = None
    ) -> None:
        self._window = None if self.is_spent else window_of(runner)
        if self._window:
            self._window.keep(runner, batch_idx, data_batch)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DataBatch = None,
        outputs: Outputs = None,
    ) -> None:
        if self._window:
            self._window.compare(data_batch)
