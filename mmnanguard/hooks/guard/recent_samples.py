from collections import deque
from typing import Any, Container, Deque, Tuple

from mmengine.dist import get_rank

from mmnanguard.core import GuardEvent

from .._shared.batch_facts import sample_ids
from .._shared.hook_arguments import DataBatch

__all__ = ['RecentSamples']


class RecentSamples:
    """What names the samples of the last iterations; keeps no images alive.

    Args:
        length: Of the longest window, in iterations.
        start: Iteration at which the open window began, from 0.
    """

    def __init__(self, length: int = 1, start: int = 0) -> None:
        self._recent: Deque[Tuple[int, int, Any]] = deque(maxlen=length)
        self._start = start

    def note(
        self, iteration: int, batch_idx: int, data_batch: DataBatch
    ) -> None:
        samples = None
        if isinstance(data_batch, dict):
            samples = data_batch.get('data_samples')
        self._recent.append((iteration, batch_idx, samples))

    def end_window(self) -> None:
        """With the iteration that was noted last."""
        self._start = self._recent[-1][0] + 1

    def of(self, event: GuardEvent) -> Tuple[str, ...]:
        """Of the open window, or of what this rank has left out of it."""
        asked: Container[int] = range(self._start, self._recent[-1][0] + 1)
        if event.micro_batches is not None:
            asked = {
                place['iter'] - 1
                for place in event.micro_batches['left_out']
                if place['rank'] == get_rank()
            }
        return tuple(
            name
            for iteration, batch_idx, samples in self._recent
            if iteration in asked
            for name in sample_ids(samples, batch_idx)
        )
