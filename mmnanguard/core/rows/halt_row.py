"""The last row of a run that the guard ended."""

from dataclasses import dataclass
from typing import ClassVar, Optional, Tuple

from .row_record import RowRecord

__all__ = ['HaltRow']


@dataclass(frozen=True)
class HaltRow(RowRecord):
    """The end of a run.

    Attributes:
        id: The id of the event that ended the run.
        iter: Iteration at which the run ended.
        story: The text that the log shows: reason, counts and advice.
        cause: The value of the cause that the story explains, which is the
            most frequent one of a streak; '' if it is not known.
    """

    KIND: ClassVar[str] = 'halt'
    NEEDED: ClassVar[Tuple[str, ...]] = ('story',)

    # The id joins this row to its event, as in all rows that follow an event.
    id: str = ''
    iter: Optional[int] = None
    story: str = ''
    cause: str = ''

    def sentence(self) -> str:
        return self.story
