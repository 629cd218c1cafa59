"""The row of updates that the guard does not see, or that train nothing."""

from dataclasses import dataclass
from typing import ClassVar, Optional, Tuple

from .row_record import RowRecord

__all__ = ['BypassRow']


@dataclass(frozen=True)
class BypassRow(RowRecord):
    """A warning that the guard gives in capitals, once in an attempt.

    Attributes:
        iter: The iteration of the warning, from 1.
        optimizer: The name of the optimizer.
        is_guarded: Whether its updates are guarded. They are if they only
            train nothing.
        message: The warning: what is seen, and after the first full stop what
            to change.
    """

    KIND: ClassVar[str] = 'bypass'
    NEEDED: ClassVar[Tuple[str, ...]] = ('message',)

    iter: Optional[int] = None
    optimizer: str = 'default'
    is_guarded: bool = False
    message: str = ''

    def sentence(self) -> str:
        return self.message

    @property
    def finding(self) -> str:
        """The part of the message that says what is seen."""
        return self.message.partition('. ')[0].rstrip('.')

    @property
    def advice(self) -> str:
        """The part of the message that says what to change."""
        return self.message.partition('. ')[2]
