from typing import Callable, Optional, Set

from torch import nn

from mmnanguard.numerics.snapshot.snapshot import Snapshot

__all__ = ['Undo']


class Undo:
    """Puts back what forward passes changed, and knows of other optimizers.

    Args:
        foreign: See :class:`Snapshot`.
    """

    def __init__(self, foreign: Callable[[], Set[int]]) -> None:
        self.snapshot = Snapshot(foreign)
        self._surroundings: Optional[nn.Module] = None
        self._count_steps: Callable[[], int] = int
        self._steps_before = 0

    def bind(
        self, surroundings: Optional[nn.Module], count_steps: Callable[[], int]
    ) -> None:
        """See :meth:`Guard.bind`."""
        self._surroundings, self._count_steps = surroundings, count_steps

    def take(self, model: nn.Module) -> None:
        """Remember what a forward pass of ``model`` may change; no sync."""
        if not self.snapshot.is_open:
            self._steps_before = self._count_steps()
        self.snapshot.take(model)
        if self._surroundings is not None:
            self.snapshot.take(self._surroundings, is_shared=True)

    def put_back(self) -> None:
        self.snapshot.restore(self._count_steps() != self._steps_before)
