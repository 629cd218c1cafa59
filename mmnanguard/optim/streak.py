"""The present streak of rejected updates."""

from collections import deque
from typing import Deque

from mmnanguard.core import GuardEvent, GuardPolicy, TrainingHalted
from mmnanguard.core.rows.halt_story import write_halt_story

__all__ = ['Streak']

# A story counts causes and names; more events would only cost memory.
MAX_KEPT = 1000


class Streak:
    """Rejected updates in a row, kept for the story of a halt.

    Attributes:
        start: The iteration of the first rejected update.
    """

    def __init__(self) -> None:
        self._events: Deque[GuardEvent] = deque(maxlen=MAX_KEPT)
        self.start = 0

    def add(self, event: GuardEvent) -> None:
        """Add a rejected update; a first skip begins a new streak."""
        if event.consecutive_skips == 1:
            self._events.clear()
            self.start = event.iter
        self._events.append(event)

    def since(self, num_skips: int, now: int) -> int:
        """Return the iteration at which the streak began.

        Args:
            num_skips: The length of the streak.
            now: The iteration of its last update.
        """
        return now if num_skips == 1 else self.start or now

    def halted(self, event: GuardEvent, policy: GuardPolicy) -> TrainingHalted:
        """Return the exception that tells the story of the streak.

        Args:
            event: The last rejected update, with its context.
            policy: The policy that was exhausted.
        """
        if self._events and self._events[-1].iter == event.iter:
            # The guard added this event before hooks gave it its context.
            self._events.pop()
        self._events.append(event)
        return TrainingHalted(
            event, write_halt_story(event, self._events, policy)
        )
