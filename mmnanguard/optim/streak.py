from collections import deque
from typing import Deque

from mmnanguard.core import GuardEvent, GuardPolicy, TrainingHalted
from mmnanguard.core.rows.halt_story import write_halt_story

__all__ = ['Streak']

MAX_KEPT = 1000


class Streak:
    """Rejected updates in a row, kept for the story of a halt.

    Attributes:
        start: Iteration of the first.
    """

    def __init__(self) -> None:
        self._events: Deque[GuardEvent] = deque(maxlen=MAX_KEPT)
        self.start = 0

    def add(self, event: GuardEvent) -> None:
        if event.consecutive_skips == 1:
            self._events.clear()
            self.start = event.iter
        self._events.append(event)

    def since(self, num_skips: int, now: int) -> int:
        """Iteration of the first of ``num_skips``, the last of them now."""
        return now if num_skips == 1 else self.start or now

    def halted(self, event: GuardEvent, policy: GuardPolicy) -> TrainingHalted:
        """The exception that tells the whole story.

        Args:
            event: The last of them, with its context.
            policy: That was exhausted.
        """
        if self._events and self._events[-1].iter == event.iter:
            self._events.pop()  # the same, without its context
        self._events.append(event)
        return TrainingHalted(
            event, write_halt_story(event, self._events, policy)
        )
