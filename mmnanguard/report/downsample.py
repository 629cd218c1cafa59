"""Samples and counts that replace many rows, names or points of curves."""

import math
from typing import (
    Counter,
    Generic,
    Iterable,
    List,
    Optional,
    Sequence,
    Set,
    Tuple,
    TypeVar,
)

__all__ = ['EvenSample', 'Points', 'Tally', 'count_by_bin', 'downsample_curve']

T = TypeVar('T')
# The iterations and the values of a curve. A value of None leaves a gap.
Points = Tuple[List[int], List[Optional[float]]]


class EvenSample(Generic[T]):
    """A sample of many items: the first, the last, and some between.

    The items between are evenly spaced.

    Attributes:
        num: Number of items that were added.
    """

    def __init__(self) -> None:
        self.num = 0
        self._stride = 1
        self._kept: List[T] = []
        # The newest item; empty if `_kept` ends with it.
        self._last: List[T] = []

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, item: T) -> bool:
        """Add an item and return whether it is retained.

        The newest item is always available, retained or not.
        """
        is_kept = self.num % self._stride == 0
        self.num += 1
        if is_kept:
            self._kept.append(item)
            self._last = []
        else:
            self._last = [item]
        return is_kept

    def drop_every_second(self) -> None:
        """Drop every second item, but not the last."""
        # If the number of items is even, the last is dropped too. It stays
        # available as `_last`, unless `_last` has a newer item.
        if len(self._kept) % 2 == 0:
            self._last = self._last or self._kept[-1:]
        self._kept = self._kept[::2]
        self._stride *= 2

    @property
    def items(self) -> List[T]:
        """Retained items and the newest item, in the order of adding."""
        return self._kept + self._last


class Tally:
    """Counts of names in bounded memory.

    Args:
        limit: The greatest number of names that are kept. If there are more,
            the names with the lowest counts are forgotten, so that a count
            may be too low, by ``num_forgotten`` at most.

    Attributes:
        num_forgotten: The number by which a count may be too low.
    """

    def __init__(self, limit: int) -> None:
        self.num_forgotten = 0
        self._limit = limit
        self._counts: Counter[str] = Counter()

    def add(self, names: Iterable[str]) -> None:
        """Add 1 to the count of each name."""
        self._counts.update(names)
        if len(self._counts) > self._limit:
            # Half of the names are forgotten, because sorting at each new name
            # would be slow.
            kept = self._counts.most_common(self._limit // 2)
            # The error grows by the highest count that is forgotten. A name
            # may be forgotten again and again, so the errors add up.
            self.num_forgotten += self._counts.most_common()[len(kept)][1]
            self._counts = Counter(dict(kept))

    def __getitem__(self, name: str) -> int:
        # A Counter returns 0 for an unknown name and does not add it.
        return self._counts[name]

    def most_common(self, num: int) -> List[Tuple[str, int]]:
        """Return the names with the highest counts, and these counts."""
        return self._counts.most_common(num)


def downsample_curve(
    iters: Sequence[int], values: Sequence[float], num_bins: int = 500
) -> Points:
    """Return a curve that looks like the given one but has fewer points.

    A bin keeps its first, last, lowest and highest finite value. It also
    keeps its first non-finite value as None, which leaves a gap in the curve.

    Args:
        iters: Iterations in rising order.
        values: The value at each iteration.
        num_bins: Number of bins with equal numbers of points.
    """
    num = len(iters)
    indices: Iterable[int] = range(num)
    # Bins of up to four points would keep nearly all of them.
    if num > 4 * num_bins:
        edges = [num * number // num_bins for number in range(num_bins + 1)]
        # A set, because a point may be both the first and the lowest.
        kept: Set[int] = set()
        for begin, end in zip(edges, edges[1:]):
            kept.update(extremes_of_bin(values, begin, end))
        indices = sorted(kept)
    kept_iters: List[int] = []
    kept_values: List[Optional[float]] = []
    for index in indices:
        value = values[index]
        kept_iters.append(iters[index])
        # JSON has no NaN. Plotly.js draws null as a gap.
        kept_values.append(value if math.isfinite(value) else None)
    return kept_iters, kept_values


def extremes_of_bin(
    values: Sequence[float], begin: int, end: int
) -> List[int]:
    """Return the indices to draw in the bin ``range(begin, end)``."""
    finite, nonfinite = [], []
    for index in range(begin, end):
        if math.isfinite(values[index]):
            finite.append(index)
        else:
            nonfinite.append(index)
    if not finite:
        return nonfinite[:1]
    lowest = min(finite, key=values.__getitem__)
    highest = max(finite, key=values.__getitem__)
    return [finite[0], lowest, highest, finite[-1], *nonfinite[:1]]


def count_by_bin(
    iters: Iterable[int], first: int, width: int, num_bins: int
) -> List[int]:
    """Count the iterations in each bin.

    Args:
        iters: The iterations. An iteration outside all bins counts for the
            nearest bin.
        first: The first iteration of the first bin.
        width: Number of iterations in a bin.
        num_bins: Number of bins.
    """
    counts = [0] * num_bins
    for iter_ in iters:
        counts[min(max((iter_ - first) // width, 0), num_bins - 1)] += 1
    return counts
