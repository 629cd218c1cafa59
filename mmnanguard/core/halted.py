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
    """

    def __init__(self, event: GuardEvent, story: str) -> None:
        super().__init__(story)
        self.event = event

    def to_row(self) -> NewRow:
        """Return the last row of an event log."""
        event = self.event
        return HaltRow(event.id, event.iter, story=str(self)).to_row()


class RollbackUnavailable(TrainingHalted):
    """The error of a rollback for which no earlier state is left."""
