"""Read the rows of a run into its summary.

Rows are read once and counted, and only a few of them are kept. Of all other
updates only the iteration is kept, which needs 8 bytes.
"""

from array import array
from collections import deque
from dataclasses import replace
from typing import (
    Counter,
    Deque,
    Dict,
    Iterable,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from mmnanguard.core import Autopsy, Cause
from mmnanguard.core.causes import facts_of_cause
from mmnanguard.core.rows.bypass_row import BypassRow
from mmnanguard.core.rows.end_row import EndRow
from mmnanguard.core.rows.halt_row import HaltRow
from mmnanguard.core.rows.input_row import InputRow
from mmnanguard.core.rows.read_row import record_of
from mmnanguard.core.rows.row_record import NewRow
from mmnanguard.core.rows.start_row import StartRow

from .downsample import EvenSample, Tally
from .summary import Culprit, Episode, Row, Summary

__all__ = ['summarize']

# Iterations without a rejected update after which an episode is over.
GAP = 200
MAX_KEPT = 2000  # rows, approximately
# Sorts of rows (kind, cause and parameter) that are sampled separately. Each
# of them keeps two rows at least, so there must be fewer than MAX_KEPT.
MAX_SORTS = 300
MAX_SAMPLES = 200_000  # names of samples in memory
NUM_RANKED = 50  # culprits of a kind in the summary
NUM_RECENT = 200  # rejected updates; the rule on the end of a run needs 5


class KeptRow(NamedTuple):
    """A row that is kept for the tables.

    Attributes:
        place: The row's number among all rows of the run.
        iter: The row's iteration; None if it is not yet known.
        row: The row.
    """

    place: int
    iter: Optional[int]
    row: Row


def summarize(
    rows: Iterable[Row], last_iter: int = 0, max_kept: int = MAX_KEPT
) -> Summary:
    """Summarize the rows of one run, in one pass and little memory.

    Args:
        rows: The rows as :func:`read_events` returns them.
        last_iter: The last iteration that is known from the scalars.
        max_kept: The approximate length of ``Summary.events``.
    """
    reader = Reader(max_kept)
    for row in rows:
        reader.add(row)
    return reader.summary(last_iter)


class Reader:
    """Counts rows and keeps a few of them.

    Args:
        max_kept: The approximate number of rows to keep.
    """

    def __init__(self, max_kept: int) -> None:
        self._max_kept = max_kept
        self._so_far = Summary()
        self._starts: List[Row] = []
        self._causes: Counter[str] = Counter()
        self._actions: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        self._recent: Deque[Tuple[int, str]] = deque(maxlen=NUM_RECENT)
        self._episodes: List[Episode] = []
        self._params: Dict[str, Culprit] = {}
        self._blameless: Dict[str, Culprit] = {}
        self._modules: Dict[str, Culprit] = {}
        self._named: Dict[str, Culprit] = {}
        self._samples = Tally(MAX_SAMPLES)
        self._kept: Dict[Tuple[str, ...], EvenSample[KeptRow]] = {}
        self._num_kept = 0
        # Iterations of the last updates by id, for rows that only have the
        # id of their update.
        self._iters: Dict[object, int] = {}

    def add(self, row: Row) -> None:
        """Count a row."""
        summary, kind = self._so_far, str(row.get('kind'))
        summary.num_rows += 1
        self._kinds[kind] += 1
        iter_ = row.get('iter')
        # The iteration of a start has not been run yet.
        if isinstance(iter_, int) and kind != 'start':
            summary.last_iter = max(summary.last_iter, iter_)
        param = ''
        if kind == 'update':
            param = self._add_update(row)
        elif kind == 'start':
            self._add_start(row)
        elif kind == HaltRow.KIND:
            summary.halt = row
        elif kind == EndRow.KIND:
            record = record_of(row)
            # A row of another version may be no such record.
            if isinstance(record, EndRow):
                summary.end = record
        elif kind == BypassRow.KIND:
            record = record_of(row)
            if isinstance(record, BypassRow):
                summary.bypasses += (record,)
        else:
            self._name_culprits(row)
        # Alerts of different rules count as different sorts.
        sort = row.get('cause', row.get('rule', ''))
        self._keep(row, (kind, str(sort), param))

    def _add_update(self, row: Row) -> str:
        """Count an update; return the parameter that is blamed first."""
        # The row is not converted to a record, because causes and actions of
        # other versions count as well.
        summary = self._so_far
        iter_, cause = int(row.get('iter') or 0), str(row.get('cause'))
        action = str(row.get('action'))
        self._causes[cause] += 1
        self._actions[action] += 1
        summary.iters.setdefault(cause, array('q')).append(iter_)
        summary.last = row
        self._remember_iter(row.get('id'), iter_)
        # 'step': the update was committed after a repair, so nothing counts
        # as rejected and nothing is blamed.
        if action == 'step':
            summary.num_left_out += row.get('micro_batches') is not None
            return ''
        # A process that was killed may not have written its row of the halt.
        if action == 'halt':
            summary.halt = summary.halt or row
        facts = facts_of_cause(cause)
        if not facts.is_routine:
            self._add_rejection(iter_, cause)
        samples = row.get('samples')
        if samples and facts.is_of_batch:
            summary.num_with_samples += 1
            self._samples.add(map(str, samples))
        params = row.get('params')
        if params and facts.names_origin:
            name = str(params[0].get('name'))
            self._params.setdefault(name, Culprit(name)).blame(cause, iter_)
            return name
        if facts.adds_up:
            self._blameless.setdefault(cause, Culprit()).blame(cause, iter_)
        return ''

    def _remember_iter(self, id_: object, iter_: int) -> None:
        """Keep the iterations of the last updates, by id."""
        if id_ is None:
            return
        self._iters[id_] = iter_
        # Rows that are joined to an update follow it closely. Forgetting many
        # at a time makes the copy rare.
        if len(self._iters) > 2 * NUM_RECENT:
            self._iters = dict(list(self._iters.items())[NUM_RECENT:])

    def _add_rejection(self, iter_: int, cause: str) -> None:
        """Count a rejected update that is no routine overflow."""
        self._so_far.num_skipped += 1
        iters = self._so_far.rejected.setdefault(cause, array('q'))
        iters.append(iter_)
        self._recent.append((iter_, cause))
        if not self._episodes or iter_ - self._episodes[-1].last > GAP:
            self._episodes.append(Episode(iter_, iter_))
        self._episodes[-1].last = iter_
        self._episodes[-1].count += 1

    def _add_start(self, row: Row) -> None:
        start, summary = StartRow.from_row(row), self._so_far
        self._starts.append(row)
        summary.run = start.run
        if start.max_iters is not None:
            summary.max_iters = start.max_iters
        # The run was resumed after the halt or the end.
        summary.halt = summary.end = None
        summary.bypasses = ()
        summary.unguarded = dict(start.unguarded)
        summary.loaded, summary.loaded_bad = start.loaded, start.loaded_bad
        # Version 0.1 names the guards only.
        if row.get('guards') == {} and not start.unguarded:
            summary.unguarded = {'default': 'a wrapper of MMEngine'}

    def _name_culprits(self, row: Row) -> None:
        """Count the modules and samples that a row names."""
        record, iter_ = record_of(row), self._iter_of(row)
        samples: Sequence[str] = ()
        cause = ''
        if isinstance(record, Autopsy):
            samples, cause = record.samples, record.phase
            # In other phases the autopsy found no module.
            if record.phase in ('forward', 'loss', 'backward'):
                name = record.module or record.module_type
                culprit = self._modules.setdefault(name, Culprit(name))
                culprit.blame(record.op, iter_)
        elif isinstance(record, InputRow):
            samples, cause = record.samples, Cause.INPUT_NONFINITE.value
        for name in samples:
            # A data set of bad samples must not fill the memory.
            if name in self._named or len(self._named) < MAX_SAMPLES:
                culprit = self._named.setdefault(name, Culprit(name))
                culprit.blame(cause, iter_)

    def _iter_of(self, row: Row) -> Optional[int]:
        """Return the row's iteration, or that of the update it is joined to.

        None if the update follows later or is forgotten.
        """
        iter_: Optional[int] = row.get('iter', self._iters.get(row.get('id')))
        return iter_

    def _keep(self, row: Row, sort: Tuple[str, ...]) -> None:
        """Keep all rows of rare sorts, and some of frequent ones.

        Args:
            row: The row to keep.
            sort: Kind, cause and parameter of the row.
        """
        if sort not in self._kept:
            # With too many sorts, rows of new sorts are sampled by kind only.
            if len(self._kept) >= MAX_SORTS:
                sort = sort[:1]
            self._kept.setdefault(sort, EvenSample())
        item = KeptRow(self._so_far.num_rows, self._iter_of(row), row)
        if not self._kept[sort].add(item):
            return
        self._num_kept += 1
        if self._num_kept > self._max_kept:
            longest = max(self._kept.values(), key=len)
            self._num_kept -= len(longest)
            longest.drop_every_second()
            self._num_kept += len(longest)

    def _events(self) -> Tuple[NewRow, ...]:
        """Return the kept rows in order, with place and iteration.

        A row that was written before its update gets the update's iteration.
        """
        kept: List[KeptRow] = []
        for sample in self._kept.values():
            kept += sample.items
        iters: Dict[object, int] = {}
        for item in kept:
            if item.iter:
                iters[item.row.get('id')] = item.iter
        events = []
        # Places are unique, so that the sort never compares rows.
        for place, iter_, row in sorted(kept):
            iter_ = iter_ or iters.get(row.get('id'))
            events.append({**row, 'place': place, 'iter': iter_})
        return tuple(events)

    def summary(self, last_iter: int) -> Summary:
        """Return the summary of the rows read so far."""
        events = self._events()
        others: Dict[str, List[NewRow]] = {}
        for row in events:
            if row.get('kind') not in ('update', 'start'):
                others.setdefault(str(row.get('kind')), []).append(row)
        firsts = [row.get('iter') or 1 for row in self._starts]
        # The first start may be lost.
        firsts += [iters[0] for iters in self._so_far.iters.values()]
        return replace(
            self._so_far,
            first_iter=min(firsts, default=1),
            last_iter=max(self._so_far.last_iter, last_iter),
            starts=tuple(self._starts),
            causes=dict(self._causes.most_common()),
            actions=dict(self._actions.most_common()),
            recent=tuple(self._recent),
            episodes=tuple(self._episodes),
            parameters=ranked(self._params.values()),
            blameless=ranked(self._blameless.values()),
            modules=ranked(self._modules.values()),
            samples=self._ranked_samples(),
            num_forgotten=self._samples.num_forgotten,
            num_kinds=dict(self._kinds.most_common()),
            events=events,
            others=others,
        )

    def _ranked_samples(self) -> Tuple[Culprit, ...]:
        """Return the named samples, then samples in several bad batches."""
        samples = list(ranked(self._named.values()))
        # All named samples may be among the most common samples.
        batches = self._samples.most_common(NUM_RANKED + len(samples))
        for name, num in batches:
            # A sample is not suspicious for being in a single bad batch.
            if num > 1 and name not in self._named:
                samples.append(Culprit(name))
        with_batches = []
        for sample in samples[:NUM_RANKED]:
            num_batches = self._samples[sample.name]
            with_batches.append(replace(sample, num_batches=num_batches))
        return tuple(with_batches)


def ranked(culprits: Iterable[Culprit]) -> Tuple[Culprit, ...]:
    """Return the culprits with the most blames, the most blamed first."""
    most_blamed = sorted(culprits, key=blames_of, reverse=True)
    return tuple(most_blamed[:NUM_RANKED])


def blames_of(culprit: Culprit) -> Tuple[int, int]:
    """Return the numbers of blames and routine overflows, as a sort key."""
    return culprit.count, culprit.num_routine
