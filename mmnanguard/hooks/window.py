from typing import Any, Dict, List, NamedTuple, Optional
from weakref import ReferenceType, WeakKeyDictionary, ref

from mmengine.runner import Runner

from mmnanguard.numerics import read_rng

from .batch_keeper import BatchKeeper, KeptBatch
from .find_guards import find_guards

__all__ = ['MicroBatch', 'Window', 'window_of']


class MicroBatch(NamedTuple):
    """What it takes to run one iteration again.

    Attributes:
        batch_idx: In its epoch, from 0.
        kept: As the data loader gave it.
        rng: States of the generators before it.
    """

    batch_idx: int
    kept: KeptBatch
    rng: Dict[str, Any]


class Window:
    """The micro-batches since the last update, for all hooks of a runner
    that may run them again.
    """

    def __init__(self) -> None:
        self.batches: List[MicroBatch] = []
        self._keeper = BatchKeeper()
        self._iter: Optional[int] = None
        self._is_compared = False

    @property
    def is_exact(self) -> bool:
        return all(batch.kept.is_exact for batch in self.batches)

    def keep(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
        """Before an iteration; of several calls the first counts."""
        if self._iter == runner.iter:
            return
        self._iter, self._is_compared = runner.iter, False
        if not any(guard.losses for guard in find_guards(runner).values()):
            self.batches = []
        kept = self._keeper.keep(data_batch)
        self.batches.append(MicroBatch(batch_idx, kept, read_rng()))

    def compare(self, data_batch: Any) -> None:
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
