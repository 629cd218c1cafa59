"""The summary of a run: counts, culprits and a sample of its rows."""

from array import array
from dataclasses import dataclass, field
from itertools import filterfalse
from typing import Dict, List, Optional, Tuple, Type, TypeVar

from mmnanguard.core.causes import facts_of_cause
from mmnanguard.core.launch import Launch
from mmnanguard.core.rows.bypass_row import BypassRow
from mmnanguard.core.rows.end_row import FINISHED, EndRow
from mmnanguard.core.rows.read_row import record_of
from mmnanguard.core.rows.row_record import NewRow, Row, RowRecord

from .loss_rise import Rise
from .read_scalars import Curve

__all__ = ['Culprit', 'Episode', 'Row', 'Summary', 'is_routine']

R = TypeVar('R', bound=RowRecord)


@dataclass
class Culprit:
    """A parameter, module or sample, and what it is blamed for.

    Attributes:
        name: The name in the rows; '' if no parameter can be blamed.
        count: For a parameter, the number of rejected updates without
            routine overflows. For a module, the number of autopsies. For a
            sample, the number of autopsies and input checks that named it
            and not its whole batch.
        first: Iteration of the first blame.
        last: Iteration of the last blame.
        causes: Number of blames by cause.
        num_routine: Number of routine overflows of the loss scale.
        num_batches: For a sample, the number of rejected updates that it was
            part of.
    """

    name: str = ''
    count: int = 0
    first: Optional[int] = None
    last: Optional[int] = None
    causes: Dict[str, int] = field(default_factory=dict)
    num_routine: int = 0
    num_batches: int = 0

    def blame(self, cause: str, iter_: Optional[int]) -> None:
        """Count a blame.

        Args:
            cause: The cause; for a module the operation, for a sample the
                phase of the autopsy.
            iter_: The iteration; None if no row names it.
        """
        self.causes[cause] = self.causes.get(cause, 0) + 1
        # Routine overflows are part of training with a loss scale. They must
        # not make a parameter a repeat offender.
        if is_routine(cause):
            self.num_routine += 1
            return
        self.count += 1
        # Rows come in order of time.
        if self.first is None:
            self.first = iter_
        self.last = iter_


@dataclass
class Episode:
    """A group of rejected updates that are close to one another.

    Routine overflows do not count.

    Attributes:
        first: Iteration of the first rejected update.
        last: Iteration of the last rejected update.
        count: Number of rejected updates.
    """

    first: int
    last: int
    count: int = 0


@dataclass
class Summary:
    """The summary of a run's rows, in little memory.

    Attributes:
        run: Name of the run.
        num_rows: Number of rows.
        first_iter: The first iteration, from 1. It is above 1 if the run
            went on with a checkpoint of another run.
        last_iter: The last known iteration, from 1.
        max_iters: The last planned iteration; None if no row names it.
        starts: The rows of kind 'start'.
        causes: Number of updates by cause, the most frequent first.
        actions: Number of updates by action.
        iters: By cause, the iterations of the updates.
        num_left_out: Number of updates committed without some micro-batches.
        num_skipped: Number of rejected updates without routine overflows.
        rejected: The iterations of these updates, by cause.
        recent: Iteration and cause of the last rejected updates.
        episodes: The episodes of rejected updates.
        last: The last row of kind 'update'.
        halt: The row of the halt that ended the last attempt, or None.
        end: The record of the last attempt's end, or None.
        is_alive: Whether the process of the last attempt still runs; None if
            that is not known.
        unguarded: The type of the wrapper of each optimizer that the last
            attempt does not guard, by name.
        bypasses: The warnings of the last attempt in capitals.
        loaded: The checkpoint that the last attempt has loaded, or ''.
        loaded_bad: A few tensors of it that are not finite, in words.
        loss: The logged loss; None without scalars.
        log_nonfinite_since: The iteration since which the logged loss has not
            been finite, up to its end; None if it is finite there.
        log_rise: The rise of the loss, if it is higher at the end by far.
        launch: What the commands to paste need.
        parameters: The parameters that were blamed first in their update,
            the most blamed one first.
        blameless: One culprit without a name for each cause, which counts
            the rejected updates for which no parameter can be blamed.
        modules: The modules that autopsies named.
        samples: Samples that autopsies and input checks named, then samples
            by the number of rejected batches.
        num_forgotten: The number by which a sample's count of rejected
            batches may be too low.
        num_with_samples: Number of rejected updates that name samples.
        events: Rows of all kinds, with ``iter`` and with ``place``, the
            number among all rows. If there are too many rows, only some rows
            of each kind, cause and parameter are kept.
        num_kinds: Number of rows by kind.
        others: By kind, the rows other than 'update' and 'start'.
    """

    run: str = ''
    num_rows: int = 0
    first_iter: int = 1
    last_iter: int = 0
    max_iters: Optional[int] = None
    starts: Tuple[Row, ...] = ()
    causes: Dict[str, int] = field(default_factory=dict)
    actions: Dict[str, int] = field(default_factory=dict)
    # Arrays, because a list would need 36 bytes per update instead of 8.
    iters: Dict[str, 'array[int]'] = field(default_factory=dict)
    num_left_out: int = 0
    num_skipped: int = 0
    rejected: Dict[str, 'array[int]'] = field(default_factory=dict)
    recent: Tuple[Tuple[int, str], ...] = ()
    episodes: Tuple[Episode, ...] = ()
    last: Optional[Row] = None
    halt: Optional[Row] = None
    end: Optional[EndRow] = None
    is_alive: Optional[bool] = None
    unguarded: Dict[str, str] = field(default_factory=dict)
    bypasses: Tuple[BypassRow, ...] = ()
    loaded: str = ''
    loaded_bad: Tuple[str, ...] = ()
    loss: Optional[Curve] = None
    log_nonfinite_since: Optional[int] = None
    log_rise: Optional[Rise] = None
    launch: Launch = field(default_factory=Launch)
    parameters: Tuple[Culprit, ...] = ()
    blameless: Tuple[Culprit, ...] = ()
    modules: Tuple[Culprit, ...] = ()
    samples: Tuple[Culprit, ...] = ()
    num_forgotten: int = 0
    num_with_samples: int = 0
    events: Tuple[Row, ...] = ()
    num_kinds: Dict[str, int] = field(default_factory=dict)
    others: Dict[str, List[NewRow]] = field(default_factory=dict)

    def records(self, record: Type[R]) -> List[R]:
        """Return the rows of one kind as records, but no update or start.

        Rows that cannot be read as such a record are left out.
        """
        records = []
        for row in self.others.get(record.KIND, ()):
            # Rows of other versions become records of another class.
            item = record_of(row)
            if isinstance(item, record):
                records.append(item)
        return records

    @property
    def num_iters(self) -> int:
        """Number of iterations that the run has come, without its prelude."""
        return max(self.last_iter - self.first_iter + 1, 0)

    @property
    def is_lost(self) -> bool:
        """Whether the last attempt ended without a row that says so."""
        return self.is_alive is False and not (self.halt or self.end)

    @property
    def is_over(self) -> bool:
        """Whether the last attempt has come to the end of training."""
        return self.end is not None and self.end.how == FINISHED

    @property
    def routine(self) -> List[str]:
        """Routine causes among ``causes``."""
        return list(filter(is_routine, self.causes))

    @property
    def anomalies(self) -> List[str]:
        """Causes that are not routine, the most frequent first."""
        return list(filterfalse(is_routine, self.causes))

    @property
    def num_routine(self) -> int:
        """Number of routine overflows of the loss scale."""
        return sum(map(self.causes.__getitem__, self.routine))


def is_routine(cause: str) -> bool:
    """Whether a cause is an expected part of training."""
    return facts_of_cause(cause).is_routine
