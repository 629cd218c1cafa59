import math
from typing import (
    Any,
    Counter,
    Generic,
    Iterable,
    List,
    Sequence,
    Tuple,
    TypeVar,
)

__all__ = ['EvenSample', 'Points', 'Tally', 'count_by_bin', 'downsample_curve']

T = TypeVar('T')
Points = Tuple[List[int], List[Any]]


class EvenSample(Generic[T]):
    """Of any number of items the first, the last, and some between at even
    distances.

    Attributes:
        num: Items seen.
    """

    def __init__(self) -> None:
        self.num = 0
        self._stride = 1
        self._kept: List[T] = []
        self._last: List[T] = []

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, item: T) -> bool:
        """Is it kept? Else it is, until another one comes."""
        is_kept = self.num % self._stride == 0
        self.num += 1
        if is_kept:
            self._kept.append(item)
        self._last = [] if is_kept else [item]
        return is_kept

    def thin_out(self) -> None:
        """Keep every second one, and the last."""
        if len(self._kept) % 2 == 0:
            self._last = self._last or self._kept[-1:]
        self._kept = self._kept[::2]
        self._stride *= 2

    @property
    def items(self) -> List[T]:
        """In the order in which they came."""
        return self._kept + self._last


class Tally:
    """Counts names, in bounded memory.

    Args:
        limit: Names kept. When there are more, those that were counted least
            are forgotten, so that counts may be too low by ``num_forgotten``
            at most.

    Attributes:
        num_forgotten: The highest count that was forgotten in all.
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
    """A curve that looks the same with at most five points a bin: its first,
    last, lowest and highest value, and None for a value that is not finite,
    which leaves a gap.

    Args:
        iters: In rising order.
        values: As many.
        num_bins: Of equal numbers of points.
    """
    num = len(iters)
    kept: Iterable[int] = range(num)
    if num > 4 * num_bins:
        edges = [num * number // num_bins for number in range(num_bins + 1)]
        kept = sorted(
            {
                place
                for begin, end in zip(edges, edges[1:])
                for place in tell_bin(values, begin, end)
            }
        )
    drawn = [values[i] if math.isfinite(values[i]) else None for i in kept]
    return [iters[i] for i in kept], drawn


def tell_bin(values: Sequence[float], begin: int, end: int) -> List[int]:
    """The places that are drawn of those from ``begin`` to ``end``."""
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
    """How many iterations lie in each bin of ``width`` from ``first`` on."""
    counts = [0] * num_bins
    for iter_ in iters:
        counts[min(max((iter_ - first) // width, 0), num_bins - 1)] += 1
    return counts
