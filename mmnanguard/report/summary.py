from array import array
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Tuple

from mmnanguard.core.causes import facts_of_cause

__all__ = ['Culprit', 'Episode', 'Row', 'Summary']

Row = Mapping[str, Any]


@dataclass
class Culprit:
    """A parameter, module or sample, and what it is blamed for.

    Attributes:
        name: As in the rows; '' where none can be blamed.
        count: Of a parameter, rejected updates, routine overflows aside; of
            a module, autopsies; of a sample, autopsies and looks at inputs
            that named it, and not all of its batch.
        first: Iteration at which it was blamed first.
        last: The same of the last time.
        causes: How often for which cause.
        num_routine: Routine overflows of the loss scale.
        num_batches: Of a sample: rejected updates that it was part of.
    """

    name: str = ''
    count: int = 0
    first: Optional[int] = None
    last: Optional[int] = None
    causes: Dict[str, int] = field(default_factory=dict)
    num_routine: int = 0
    num_batches: int = 0

    def blame(self, cause: str, iter_: int) -> None:
        self.causes[cause] = self.causes.get(cause, 0) + 1
        if facts_of_cause(cause).is_routine:
            self.num_routine += 1
            return
        self.count += 1
        self.first = iter_ if self.first is None else self.first
        self.last = iter_


@dataclass
class Episode:
    """Rejected updates not far from one to the next, routine overflows aside.

    Attributes:
        first: Iteration of the first one.
        last: Of the last one.
        count: How many.
    """

    first: int
    last: int
    count: int = 0


@dataclass
class Summary:
    """What the rows of one run come to; as large for a million of them.

    Attributes:
        run: Its name.
        num_rows: Read.
        last_iter: The last iteration that is known of, from 1.
        max_iters: What the run is to reach; None if it is not told.
        starts: Rows of kind 'start'.
        causes: Updates by cause, the most frequent first.
        actions: Updates by what was done.
        iters: Iterations of the updates of each cause.
        num_left_out: Updates committed without some micro-batches.
        num_skipped: Rejected updates, routine overflows aside.
        recent: Iteration and cause of the last ones of them.
        episodes: In which these fall.
        last: The last update row.
        halt: The row of the halt that ended the last attempt; None if none
            did.
        parameters: Blamed first, the most often blamed one first.
        blameless: Rejected updates that no parameter can be blamed for, by
            cause; without names.
        modules: That autopsies named.
        samples: Those that were named first, then by the number of batches.
        num_forgotten: By how much a count of a sample may be too low.
        num_with_samples: Rejected updates that name samples.
        events: Rows of all kinds, with ``iter``; if there are too many, some
            of each kind, cause and parameter; ``place`` is the number among
            all rows.
        num_kinds: Rows by kind.
        others: Rows of other kinds than 'update' and 'start', by kind.
    """

    run: str = ''
    num_rows: int = 0
    last_iter: int = 0
    max_iters: Optional[int] = None
    starts: Tuple[Row, ...] = ()
    causes: Dict[str, int] = field(default_factory=dict)
    actions: Dict[str, int] = field(default_factory=dict)
    iters: Dict[str, 'array[int]'] = field(default_factory=dict)
    num_left_out: int = 0
    num_skipped: int = 0
    recent: Tuple[Tuple[int, str], ...] = ()
    episodes: Tuple[Episode, ...] = ()
    last: Optional[Row] = None
    halt: Optional[Row] = None
    parameters: Tuple[Culprit, ...] = ()
    blameless: Tuple[Culprit, ...] = ()
    modules: Tuple[Culprit, ...] = ()
    samples: Tuple[Culprit, ...] = ()
    num_forgotten: int = 0
    num_with_samples: int = 0
    events: Tuple[Row, ...] = ()
    num_kinds: Dict[str, int] = field(default_factory=dict)
    others: Dict[str, List[Row]] = field(default_factory=dict)

    @property
    def routine(self) -> List[str]:
        """Routine causes among ``causes``."""
        return [
            name for name in self.causes if facts_of_cause(name).is_routine
        ]

    @property
    def anomalies(self) -> List[str]:
        """All other causes, the most frequent first."""
        return [
            name for name in self.causes if not facts_of_cause(name).is_routine
        ]

    @property
    def num_routine(self) -> int:
        """Routine overflows of the loss scale."""
        return sum(self.causes[name] for name in self.routine)
