"""Log scalars whose averages leave out non-finite values."""

from typing import Any, Optional, Tuple, Type, TypeVar

import numpy as np
from mmengine.logging import HistoryBuffer

__all__ = ['CommittedHistory', 'FiniteHistory']

# The statistics that MMEngine's log processor can ask for by name.
OWN_METHODS = ('mean', 'max', 'min')
History = TypeVar('History', bound='FiniteHistory')


class FiniteHistory(HistoryBuffer):
    """A log scalar that keeps all values, and averages the finite ones.

    In MMEngine, one NaN makes the smoothed value NaN for a whole window. Here
    the statistics of a window leave its non-finite values out. They are NaN
    only if the window has no finite value, so that no old number stands in
    for a fault that lasts. ``data`` and ``current`` hide nothing.

    A copy and a pickle of it are MMEngine's own class, so that a checkpoint
    can be read without this package.
    """

    @classmethod
    def of(cls: Type[History], buffer: HistoryBuffer) -> History:
        """Return a history with the content of MMEngine's ``buffer``."""
        history = cls()
        vars(history).update(vars(buffer))
        return history

    def mean(self, window_size: Optional[int] = None) -> Any:
        """Return the mean of the window's finite values, or NaN."""
        return self._statistic('mean', window_size)

    def max(self, window_size: Optional[int] = None) -> Any:
        """Return the greatest finite value of the window, or NaN."""
        return self._statistic('max', window_size)

    def min(self, window_size: Optional[int] = None) -> Any:
        """Return the smallest finite value of the window, or NaN."""
        return self._statistic('min', window_size)

    def statistics(self, method_name: str, *arg: Any, **kwargs: Any) -> Any:
        """Return a statistic by its name, as MMEngine does."""
        # MMEngine's table of methods holds the functions of its own class.
        if method_name in OWN_METHODS:
            return getattr(self, method_name)(*arg, **kwargs)
        return super().statistics(method_name, *arg, **kwargs)

    def _statistic(self, name: str, window_size: Optional[int]) -> Any:
        values, counts = self._log_history, self._count_history
        if window_size is not None:
            values, counts = values[-window_size:], counts[-window_size:]
        is_finite = np.isfinite(values)
        if not is_finite.any():
            return np.float64('nan')
        finite = HistoryBuffer(values[is_finite], counts[is_finite])
        return finite.statistics(name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        plain = HistoryBuffer()
        vars(plain).update(vars(self))
        plain._log_history, plain._count_history = self.data
        return plain.__reduce_ex__(protocol)


class CommittedHistory(FiniteHistory):
    """A log scalar of committed updates only, such as their gradient norms.

    A rejected update has no value, but it takes its place in a window, so
    that a window without a commit is NaN and not an old number.
    """

    def note_rejected(self) -> None:
        """Note an update that was rejected."""
        self.update(np.nan)

    @property
    def data(self) -> Tuple[Any, Any]:
        """The values of committed updates, and the count of each."""
        is_finite = np.isfinite(self._log_history)
        return self._log_history[is_finite], self._count_history[is_finite]
