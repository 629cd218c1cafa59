from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass
from typing import Iterable, Tuple

__all__ = ['SortedWindow']


@dataclass(frozen=True)
class SortedWindow:
    """The last of a row of numbers, and the same in order.

    Kept in order because sorting them for each percentile would cost most.

    Attributes:
        row: Finite, oldest first.
        ordered: The same, smallest first.
    """

    row: Tuple[float, ...] = ()
    ordered: Tuple[float, ...] = ()

    @classmethod
    def of(cls, row: Iterable[float], size: int) -> 'SortedWindow':
        """The last ``size`` of a row."""
        last = tuple(row)[-size:]
        return cls(last, tuple(sorted(last)))

    def after(self, value: float, size: int) -> 'SortedWindow':
        """With one number more, and the oldest gone if it held ``size``."""
        ordered = list(self.ordered)
        if len(self.row) == size:
            del ordered[bisect_left(ordered, self.row[0])]
        insort(ordered, value)
        return SortedWindow((*self.row, value)[-size:], tuple(ordered))

    def percentile(self, percent: float, extra: float) -> float:
        """As ``numpy.percentile`` of the row and one number more.

        Args:
            percent: In [0, 100].
            extra: As if it were in the row.
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
