"""Few items that stand for many: rows, names and points of curves."""

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
# Iterations, and a value for each; None leaves a gap.
Points = Tuple[List[int], List[Optional[float]]]


class EvenSample(Generic[T]):
    """Keeps the first and the last of many items, and some between.

    The items between have even distances.

    Attributes:
        num: Number of items that were added.
    """

    def __init__(self) -> None:
        self.num = 0
        self._stride = 1
        self._kept: List[T] = []
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
        self._last = [] if is_kept else [item]
        return is_kept

    def drop_every_second(self) -> None:
        """Drop every second item, but not the last."""
        if len(self._kept) % 2 == 0:
            self._last = self._last or self._kept[-1:]
        self._kept = self._kept[::2]
        self._stride *= 2

    @property
    def items(self) -> List[T]:
        """The kept items in the order in which they were added."""
        return self._kept + self._last


class Tally:
    """Counts names in bounded memory.

    Args:
        limit: The greatest number of names that are kept. If there are more,
            the names with the lowest counts are forgotten, so that a count
            may be too low, by ``num_forgotten`` at most.

    Attributes:
        num_forgotten: By how much a count may be too low.
    """

    def __init__(self, limit: int) -> None:
        self.num_forgotten = 0
        self._limit = limit
        self._counts: Counter[str] = Counter()

    def add(self, names: Iterable[str]) -> None:
        self._counts.update(names)
        if len(self._counts) > self._limit:
            kept = self._counts.most_common(self._limit // 2)
            self.num_forgotten += self._counts.most_common()[len(kept)][1]
            self._counts = Counter(dict(kept))

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def most_common(self, num: int) -> List[Tuple[str, int]]:
        return self._counts.most_common(num)


def downsample_curve(
    iters: Sequence[int], values: Sequence[float], num_bins: int = 500
) -> Points:
    """Return a curve that looks the same with fewer points.

    Of each bin the first, last, lowest and highest value are kept, and one
    non-finite value, as None, which leaves a gap in the curve.

    Args:
        iters: Iterations in rising order.
        values: One value for each iteration.
        num_bins: Number of bins with equal numbers of points.
    """
    num = len(iters)
    kept: Iterable[int] = range(num)
    if num > 4 * num_bins:
        edges = [num * number // num_bins for number in range(num_bins + 1)]
        indices: Set[int] = set()
        for begin, end in zip(edges, edges[1:]):
            indices.update(extremes_of_bin(values, begin, end))
        kept = sorted(indices)
    drawn: List[Optional[float]] = []
    for index in kept:
        is_finite = math.isfinite(values[index])
        drawn.append(values[index] if is_finite else None)
    return [iters[index] for index in kept], drawn


def extremes_of_bin(
    values: Sequence[float], begin: int, end: int
) -> List[int]:
    """Return the indices to draw, from ``begin`` up to but without ``end``."""
    finite = [i for i in range(begin, end) if math.isfinite(values[i])]
    gaps = [i for i in range(begin, end) if not math.isfinite(values[i])]
    if not finite:
        return gaps[:1]
    lowest = min(finite, key=values.__getitem__)
    highest = max(finite, key=values.__getitem__)
    return [finite[0], lowest, highest, finite[-1], *gaps[:1]]


def count_by_bin(
    iters: Iterable[int], first: int, width: int, num_bins: int
) -> List[int]:
    """Count the iterations in each bin.

    Args:
        iters: The iterations. Those outside all bins count for the nearest.
        first: The first iteration of the first bin.
        width: Number of iterations in a bin.
        num_bins: Number of bins.
    """
    counts = [0] * num_bins
    for iter_ in iters:
        counts[min(max((iter_ - first) // width, 0), num_bins - 1)] += 1
    return counts
