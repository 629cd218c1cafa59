"""The parts of the loss that were not finite, and how often."""

import math
from typing import Dict, List, Set

from mmengine.logging import MessageHub

from mmnanguard.core import GuardEvent

__all__ = ['LossParts']


class LossParts:
    """Counts the iterations in which a part of the loss was not finite.

    The counts are those of this rank and of this process.

    Args:
        start: The iteration at which the process began, from 0.
    """

    def __init__(self, start: int = 0) -> None:
        self._start = start
        self._counts: Dict[str, int] = {}
        self._in_window: Set[str] = set()

    def note(self, hub: MessageHub, keys: List[str]) -> None:
        """Count the parts of one iteration; no sync.

        Args:
            hub: MMEngine's hub, which has the logged values on the host.
            keys: The names of the values that the model returned.
        """
        bad = []
        for key in keys:
            buffer = hub.log_scalars.get(f'train/{key}')
            if 'loss' in key and buffer is not None:
                values, _ = buffer.data
                if len(values) > 0 and not math.isfinite(values[-1]):
                    bad.append(key)
        # MMEngine sums the parts under the key 'loss'.
        if len(bad) > 1 and 'loss' in bad:
            bad.remove('loss')
        for key in bad:
            self._counts[key] = self._counts.get(key, 0) + 1
        self._in_window.update(bad)

    def end_window(self) -> None:
        """Forget which parts were bad in the window that has ended."""
        self._in_window.clear()

    def of(self, event: GuardEvent, iteration: int) -> Dict[str, object]:
        """Return the fields of an event about the parts of its window.

        Args:
            event: The event.
            iteration: The iteration of the event, from 1.
        """
        if math.isfinite(event.loss):
            return {}
        counts = {key: self._counts[key] for key in sorted(self._in_window)}
        return dict(bad_losses=counts, num_iters=iteration - self._start)
