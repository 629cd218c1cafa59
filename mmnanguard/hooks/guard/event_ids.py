"""The ids that join the rows of an event."""

from typing import Set

from mmnanguard.core import GuardEvent

__all__ = ['EventIds']


class EventIds:
    """Gives each event of a run an id that no other one has."""

    def __init__(self) -> None:
        self._used: Set[str] = set()

    def new(self, event: GuardEvent) -> str:
        """Return an id for all rows of the event, unique in the run."""
        name = f'{event.run}-{event.iter}'
        if event.optimizer != 'default':
            name = f'{name}-{event.optimizer}'
        # An iteration can have several events: a model may step twice.
        unique, number = name, 1
        while unique in self._used:
            number += 1
            unique = f'{name}.{number}'
        self._used.add(unique)
        return unique
