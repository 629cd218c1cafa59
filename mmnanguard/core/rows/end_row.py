"""The row that a process writes when its training ends."""

from dataclasses import dataclass, field
from typing import ClassVar, Mapping, Optional, Tuple

from .row_record import RowRecord

__all__ = ['CRASHED', 'FINISHED', 'INTERRUPTED', 'EndRow']

FINISHED = 'finished'
CRASHED = 'crashed'
INTERRUPTED = 'interrupted'


@dataclass(frozen=True)
class EndRow(RowRecord):
    """The end of an attempt that the guard did not halt.

    A process that was killed writes no such row.

    Attributes:
        how: 'finished', 'crashed' for an exception, or 'interrupted' for
            Ctrl-C.
        iter: The iteration at which training ended, from 1.
        error: Type and first line of the exception; '' without one.
        first_losses: The loss of the run's first updates, by optimizer.
        last_losses: The loss of its last updates.
    """

    KIND: ClassVar[str] = 'end'
    NEEDED: ClassVar[Tuple[str, ...]] = ('how',)

    how: str = ''
    iter: Optional[int] = None
    error: str = ''
    first_losses: Mapping[str, float] = field(default_factory=dict)
    last_losses: Mapping[str, float] = field(default_factory=dict)

    def sentence(self) -> str:
        if self.iter is None:
            return self.how
        sentence = f'{self.how} at iteration {self.iter:,}'
        if self.error:
            sentence += f' by {self.error}'
        return sentence
