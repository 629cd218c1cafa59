"""The guard's scalars in MMEngine's log, and non-finite values in it."""

import logging
import math
from typing import (
    Any,
    Dict,
    Iterable,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
    Type,
    TypeVar,
)

import numpy as np
from mmengine.logging import HistoryBuffer, MessageHub, MMLogger

from mmnanguard._console import say
from mmnanguard.numerics.guard_protocol import GuardProtocol

__all__ = [
    'CommittedHistory',
    'FiniteHistory',
    'LoggedValues',
    'guard_scalars',
    'note_rejected',
    'update_scalars',
]

# MMEngine appends to a log scalar by copying it, so a long scalar is slow:
# https://github.com/open-mmlab/mmengine/blob/v0.10.7/mmengine/logging/history_buffer.py#L76
SCALAR_LENGTH = 1000


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


def guard_scalars(
    hub: MessageHub, guards: Mapping[str, GuardProtocol]
) -> Dict[str, float]:
    """Return the counters of all guards, by name in the hub."""
    scalars: Dict[str, float] = {}
    for name, guard in guards.items():
        prefix = 'train/guard/'
        # 'default' is a lone optimizer, which needs no name in the log.
        if name != 'default':
            prefix = f'{prefix}{name}/'
        scalars[f'{prefix}skipped'] = guard.state.total_skips
        scalars[f'{prefix}routine_overflows'] = guard.state.routine_overflows
        # A scalar that can never change would only fill dashboards.
        if guard.policy.accumulation == 'microbatch':
            scalars[f'{prefix}left_out'] = guard.state.num_left_out
        if guard.clips_norm:
            scalars[f'{prefix}clip_coef'] = guard.last_clip_coef
        factor = guard.state.lr_factor
        # A curve that has begun goes on after the factor is 1 again.
        was_logged = f'{prefix}lr_factor' in hub.log_scalars
        if guard.policy.lr_backoff or factor < 1.0 or was_logged:
            scalars[f'{prefix}lr_factor'] = factor
        if guard.scaler.is_enabled():
            scalars[f'{prefix}amp_scale'] = guard.scaler.get_scale()
    return scalars


def update_scalars(
    hub: MessageHub, guards: Mapping[str, GuardProtocol]
) -> None:
    """Write the counters of all guards under ``train/guard/``."""
    for name, value in guard_scalars(hub, guards).items():
        hub.update_scalar(name, value)
        hub.get_scalar(name).max_length = SCALAR_LENGTH


def note_rejected(hub: MessageHub) -> None:
    """Note a rejected update in the log of the norms of committed updates."""
    name = 'train/grad_norm'
    norms = hub.log_scalars.get(name)
    if norms is None:
        return
    if not isinstance(norms, CommittedHistory):
        norms = hub.log_scalars[name] = CommittedHistory.of(norms)
    norms.note_rejected()


class LoggedValues:
    """The values that the model logs, and reports of non-finite ones.

    Beside an optimizer that is not guarded, the log is left as MMEngine
    writes it. Otherwise averages leave out non-finite values, see
    :class:`FiniteHistory`.

    Args:
        unguarded: The names of the optimizers that have no guard.
    """

    def __init__(self, unguarded: Sequence[str] = ()) -> None:
        self._unguarded = ', '.join(map(repr, unguarded))
        self._reported: Set[str] = set()

    def resume(self, hub: MessageHub) -> None:
        """Average the scalars of a checkpoint, which are MMEngine's own."""
        if self._unguarded:
            return
        for name, buffer in list(hub.log_scalars.items()):
            is_finite = np.isfinite(buffer.data[0]).all()
            if name.startswith('train/') and not is_finite:
                hub.log_scalars[name] = FiniteHistory.of(buffer)

    def check(
        self,
        hub: MessageHub,
        outputs: Iterable[str],
        logger: MMLogger,
        has_event: bool,
    ) -> None:
        """Look at the newest values, which are host numbers; no sync.

        Args:
            hub: The hub that holds the log scalars.
            outputs: The names of the values that the model has logged.
            logger: The logger for reports, one per name.
            has_event: Whether an event reports the iteration.
        """
        scalars = hub.log_scalars
        for key in outputs:
            buffer = scalars.get(f'train/{key}')
            if buffer is None or len(buffer.data[0]) == 0:
                continue
            value = buffer.data[0][-1]
            if math.isfinite(value):
                continue
            if not (self._unguarded or isinstance(buffer, FiniteHistory)):
                scalars[f'train/{key}'] = FiniteHistory.of(buffer)
            if not has_event and key not in self._reported:
                self._reported.add(key)
                # MMEngine's number counts finished iterations.
                iteration = hub.get_info('iter', 0) + 1
                self._report(
                    f"Iter {iteration}: the model logs '{key}' as {value}",
                    key,
                    logger,
                )

    def _report(self, what: str, key: str, logger: MMLogger) -> None:
        if not self._unguarded:
            say(
                f'{what}; the smoothed log averages its finite values only '
                '(said once)',
                logging.WARNING,
                logger,
            )
        elif 'loss' in key:
            say(
                f'{what}, and optimizer {self._unguarded} is NOT GUARDED: '
                'its update was not judged; weights may be non-finite from '
                'now on (said once)',
                logging.ERROR,
                logger,
            )
