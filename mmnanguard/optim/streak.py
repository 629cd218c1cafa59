"""The present streak of rejected updates."""

from collections import deque
from typing import Deque, List, Optional

from mmnanguard.core import GuardEvent, GuardPolicy, TrainingHalted
from mmnanguard.core.causes import CAUSES
from mmnanguard.core.rows.halt_story import (
    Finding,
    main_cause,
    write_halt_story,
)
from mmnanguard.core.rows.row_record import RowRecord

__all__ = ['Streak']

# A story counts causes and names; more events would only cost memory. They
# outlive a streak: a halt by the rate of skips is about several.
MAX_KEPT = 1000
MAX_FINDINGS = 32


class Streak:
    """Rejected updates in a row, kept for the story of a halt.

    Attributes:
        start: The iteration of the first rejected update.
    """

    def __init__(self) -> None:
        self._events: Deque[GuardEvent] = deque(maxlen=MAX_KEPT)
        self._findings: Deque[Finding] = deque(maxlen=MAX_FINDINGS)
        self.start = 0

    def add(self, event: GuardEvent) -> None:
        """Add a rejected update; a first skip begins a new streak."""
        if event.consecutive_skips == 1:
            self.start = event.iter
        self._events.append(event)

    def complete(self, event: GuardEvent) -> None:
        """Replace the last event by its form with samples and the like."""
        if self._has_last(event):
            self._events[-1] = event

    def _has_last(self, event: GuardEvent) -> bool:
        """Whether the last event is this one, with or without context."""
        if not self._events:
            return False
        last = self._events[-1]
        # An iteration may have several updates.
        return (last.iter, last.total_skips) == (event.iter, event.total_skips)

    def explain(self, event: GuardEvent, record: RowRecord) -> None:
        """Keep what explains an event; it outlives the streak."""
        self._findings.append(Finding(event, record))

    def since(self, num_skips: int, now: int) -> Optional[int]:
        """Return the iteration at which the streak began, or None.

        Args:
            num_skips: The length of the streak.
            now: The iteration of its last update.
        """
        if num_skips == 0:
            return None
        return now if num_skips == 1 else self.start or now

    def halted(self, event: GuardEvent, policy: GuardPolicy) -> TrainingHalted:
        """Return the exception that tells the story of the streak.

        Args:
            event: The last rejected update, with its context.
            policy: The policy that was exhausted.
        """
        if not self._has_last(event):
            self._events.append(event)
        self.complete(event)
        streak = self._behind(event, policy)
        story = write_halt_story(event, streak, policy, list(self._findings))
        return TrainingHalted(event, story, main_cause(event, streak))

    def _behind(
        self, event: GuardEvent, policy: GuardPolicy
    ) -> List[GuardEvent]:
        """Return the rejected updates that led to a halt, oldest first."""
        limit = policy.max_consecutive_skips
        since = self.start
        is_streak = limit is not None and event.consecutive_skips >= limit
        # Not the streak was too long, but the share of skips too high.
        if not (is_streak or CAUSES[event.cause].ends_run):
            since = event.iter - policy.skip_rate_window + 1
        kept = [item for item in self._events if item.iter >= since]
        return kept or [event]
