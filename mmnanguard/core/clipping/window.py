"""A window of recent numbers that is kept in order, for percentiles."""

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass
from typing import Iterable, Tuple

__all__ = ['SortedWindow']


@dataclass(frozen=True)
class SortedWindow:
    """The latest numbers of a series, in the order of age and of size.

    Attributes:
        row: Finite numbers, oldest first.
        ordered: The numbers of ``row``, smallest first.
    """

    # Both orders are kept: sorting the numbers for each percentile would take
    # most of the time of an update.

    row: Tuple[float, ...] = ()
    ordered: Tuple[float, ...] = ()

    @classmethod
    def of(cls, row: Iterable[float], size: int) -> 'SortedWindow':
        """Return the window of the last ``size`` numbers of a series."""
        last = tuple(row)[-size:]
        return cls(last, tuple(sorted(last)))

    def after(self, value: float, size: int) -> 'SortedWindow':
        """Return the window with a number added.

        Args:
            value: The number to add.
            size: Largest number of entries. Beyond it, the oldest entry is
                dropped.
        """
        # A copy, because a rule that was saved or is rolled back to holds the
        # old window.
        ordered = list(self.ordered)
        if len(self.row) == size:
            del ordered[bisect_left(ordered, self.row[0])]
        insort(ordered, value)
        return SortedWindow((*self.row, value)[-size:], tuple(ordered))

    def percentile(self, percent: float, extra: float) -> float:
        """Return the percentile of the row and one more number.

        Equals ``numpy.percentile`` with its default, linear interpolation.

        Args:
            percent: The percentile, in [0, 100].
            extra: Number that is counted as if it were in the row.
        """
        # The extra number is not inserted: that would copy the whole window.
        place = bisect_right(self.ordered, extra)

        def at(index: int) -> float:
            """Return the number at an index of the row with ``extra``."""
            if index == place:
                return extra
            # Behind the place of ``extra``, indices are shifted by one.
            return self.ordered[index - (index > place)]

        # The last index of the row with ``extra``, so no 1 is subtracted.
        last = len(self.ordered)
        index, rest = divmod(percent / 100 * last, 1)
        low = at(int(index))
        return low + (at(min(int(index) + 1, last)) - low) * rest
