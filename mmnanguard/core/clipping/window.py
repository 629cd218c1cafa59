"""A window of recent numbers that is kept in order, for percentiles."""

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass
from typing import Iterable, Tuple

__all__ = ['SortedWindow']


@dataclass(frozen=True)
class SortedWindow:
    """The latest numbers of a series, by age and by size.

    They are kept in order because sorting them for each percentile would take
    most of the time.

    Attributes:
        row: Finite numbers, oldest first.
        ordered: The numbers of ``row``, smallest first.
    """

    row: Tuple[float, ...] = ()
    ordered: Tuple[float, ...] = ()

    @classmethod
    def of(cls, row: Iterable[float], size: int) -> 'SortedWindow':
        """Build the window of the last ``size`` numbers of a series."""
        last = tuple(row)[-size:]
        return cls(last, tuple(sorted(last)))

    def after(self, value: float, size: int) -> 'SortedWindow':
        """Return the window with a number added.

        Args:
            value: The number to add.
            size: Largest number of entries; beyond it the oldest is dropped.
        """
        ordered = list(self.ordered)
        if len(self.row) == size:
            del ordered[bisect_left(ordered, self.row[0])]
        insort(ordered, value)
        return SortedWindow((*self.row, value)[-size:], tuple(ordered))

    def percentile(self, percent: float, extra: float) -> float:
        """Compute ``numpy.percentile`` of the row and one number more.

        Args:
            percent: In [0, 100].
            extra: Number that is counted as if it were in the row.
        """
        place = bisect_right(self.ordered, extra)

        def at(index: int) -> float:
            if index == place:
                return extra
            return self.ordered[index - (index > place)]

        last = len(self.ordered)
        index, rest = divmod(percent / 100 * last, 1)
        low = at(int(index))
        return low + (at(min(int(index) + 1, last)) - low) * rest
