"""Exceptions that end a run, with the update that was the reason."""

from .errors import NanGuardError
from .rows.guard_event import GuardEvent
from .rows.halt_row import HaltRow
from .rows.row_record import NewRow

__all__ = ['RollbackUnavailable', 'TrainingHalted']


# Not in ``errors``: these classes need rows, which build on ``errors``.
class TrainingHalted(NanGuardError):
    """The error that ends a run before a bad update is committed.

    Args:
        event: The update that stopped the run; kept as ``.event``.
        story: The text for the user: reason, counts and advice.
        cause: The value of the cause that the story explains; kept as
            ``.cause``.
    """

    def __init__(self, event: GuardEvent, story: str, cause: str = '') -> None:
        super().__init__(story)
        self.event = event
        self.cause = cause

    def to_row(self) -> NewRow:
        """Return the last row of an event log."""
        event = self.event
        row = HaltRow(event.id, event.iter, str(self), self.cause)
        return row.to_row()


class RollbackUnavailable(TrainingHalted):
    """The error of a rollback for which no earlier state is left."""
