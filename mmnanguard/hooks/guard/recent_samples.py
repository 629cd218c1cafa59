"""The sample names of the last iterations, for events."""

from collections import deque
from typing import Container, Deque, Iterable, List, Mapping, Set, Tuple

from mmengine.dist import get_rank

from mmnanguard.core import GuardEvent

from .._shared.batch_facts import sample_ids
from .._shared.hook_arguments import DataBatch

__all__ = ['RecentSamples']


class RecentSamples:
    """Names the samples of the last iterations that had a backward pass.

    It keeps the ``data_samples`` of each batch and not the inputs, so that no
    image stays in memory.

    Args:
        length: Length of the longest window, in iterations.
        start: Iteration at which the open window began, from 0.
    """

    def __init__(self, length: int = 1, start: int = 0) -> None:
        self._recent: Deque[Tuple[int, int, object]] = deque(maxlen=length)
        self._start = start

    def note(
        self, iteration: int, batch_idx: int, data_batch: DataBatch
    ) -> None:
        """Note the samples of an iteration."""
        samples = None
        if isinstance(data_batch, dict):
            samples = data_batch.get('data_samples')
        # Names are read only for an event, because most iterations have none.
        self._recent.append((iteration, batch_idx, samples))

    def end_window(self) -> None:
        """Close the window with the iteration that was noted last."""
        # Not `length` iterations after the former start, because the last
        # window of a training can be shorter.
        self._start = self._recent[-1][0] + 1

    def of(
        self, event: GuardEvent, window: Container[int] = ()
    ) -> Tuple[str, ...]:
        """Return the sample names of the window that an event is about.

        For an event that left out micro-batches, return only the sample names
        of the micro-batches that this rank left out.

        Args:
            event: The event.
            window: The iterations of the window, from 0. If it is empty, they
                are all iterations since the former update.
        """
        last = self._recent[-1][0]
        iterations = window or range(self._start, last + 1)
        if event.micro_batches is not None:
            iterations = own_iterations(event.micro_batches['left_out'])
        names: List[str] = []
        for iteration, batch_idx, samples in self._recent:
            if iteration in iterations:
                names.extend(sample_ids(samples, batch_idx))
        return tuple(names)


def own_iterations(micro_batches: Iterable[Mapping[str, int]]) -> Set[int]:
    """Return the iterations, from 0, of this rank's micro-batches."""
    iterations: Set[int] = set()
    for place in micro_batches:
        if place['rank'] == get_rank():
            # Events count iterations from 1, runner.iter counts from 0.
            iterations.add(place['iter'] - 1)
    return iterations
