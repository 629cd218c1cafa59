from array import array
from collections import deque
from dataclasses import replace
from typing import Any, Counter, Deque, Dict, Iterable, List, Sequence, Tuple

from mmnanguard.core import Autopsy, Cause
from mmnanguard.core.causes import facts_of_cause
from mmnanguard.core.rows.input_row import InputRow
from mmnanguard.core.rows.read_row import record_of
from mmnanguard.core.rows.start_row import StartRow

from .downsample import EvenSample, Tally
from .summary import Culprit, Episode, Row, Summary

__all__ = ['summarize']

GAP = 200  # iterations without a rejected update: then trouble was over
MAX_KEPT = 2000  # rows, about
MAX_SORTS = 300  # kinds x causes x parameters that are told apart for it
MAX_SAMPLES = 200_000  # names
NUM_RANKED = 50
NUM_RECENT = 200


def summarize(
    rows: Iterable[Row], last_iter: int = 0, max_kept: int = MAX_KEPT
) -> Summary:
    """What the rows of one run come to, in one pass and little memory.

    Args:
        rows: As :func:`read_events` has them.
        last_iter: The last iteration that is known from elsewhere.
        max_kept: Of ``Summary.events``, about.
    """
    reader = Reader(max_kept)
    for row in rows:
        reader.add(row)
    return reader.summary(last_iter)


class Reader:
    """Takes rows, keeps counts and a few of them."""

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
        self._kept: Dict[
            Tuple[str, ...], EvenSample[Tuple[int, Any, Row]]
        ] = {}
        self._num_kept = 0
        self._iters: Dict[Any, int] = {}  # by id, of what still is joined

    def add(self, row: Row) -> None:
        summary, kind = self._so_far, str(row.get('kind'))
        summary.num_rows += 1
        self._kinds[kind] += 1
        iter_ = row.get('iter')
        if isinstance(iter_, int) and kind != 'start':
            summary.last_iter = max(summary.last_iter, iter_)
        name = ''
        if kind == 'update':
            name = self._add_update(row)
        elif kind == 'start':
            self._add_start(row)
        elif kind == 'halt':
            summary.halt = row
        else:
            self._name_culprits(row)
        self._keep(row, (kind, str(row.get('cause', '')), name))

    def _add_update(self, row: Row) -> str:
        """Count an update; return the parameter that is blamed first.

        The row is read as it stands, for causes and actions of another
        version count as well.
        """
        summary = self._so_far
        iter_, cause = int(row.get('iter') or 0), str(row.get('cause'))
        action = str(row.get('action'))
        self._causes[cause] += 1
        self._actions[action] += 1
        summary.iters.setdefault(cause, array('q')).append(iter_)
        summary.last = row
        if row.get('id') is not None:
            self._iters[row['id']] = iter_
            if len(self._iters) > 2 * NUM_RECENT:
                self._iters = dict(list(self._iters.items())[NUM_RECENT:])
        if action == 'step':
            summary.num_left_out += row.get('micro_batches') is not None
            return ''
        if action == 'halt':
            summary.halt = summary.halt or row
        facts = facts_of_cause(cause)
        if not facts.is_routine:
            summary.num_skipped += 1
            self._recent.append((iter_, cause))
            if not self._episodes or iter_ - self._episodes[-1].last > GAP:
                self._episodes.append(Episode(iter_, iter_))
            self._episodes[-1].last = iter_
            self._episodes[-1].count += 1
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

    def _add_start(self, row: Row) -> None:
        start, summary = StartRow.from_row(row), self._so_far
        self._starts.append(row)
        summary.run = start.run
        if start.max_iters is not None:
            summary.max_iters = start.max_iters
        summary.halt = None

    def _name_culprits(self, row: Row) -> None:
        """Count the modules and samples that a row names."""
        record, iter_ = record_of(row), self._iter_of(row)
        samples: Sequence[str] = ()
        cause = ''
        if isinstance(record, Autopsy):
            samples, cause = record.samples, record.phase
            if record.phase in ('forward', 'loss', 'backward'):
                name = record.module or record.module_type
                culprit = self._modules.setdefault(name, Culprit(name))
                culprit.blame(record.op, iter_)
        elif isinstance(record, InputRow):
            samples, cause = record.samples, Cause.INPUT_NONFINITE.value
        for name in samples:
            if name in self._named or len(self._named) < MAX_SAMPLES:
                culprit = self._named.setdefault(name, Culprit(name))
                culprit.blame(cause, iter_)

    def _iter_of(self, row: Row) -> Any:
        """A row may say only to which update it is joined."""
        return row.get('iter', self._iters.get(row.get('id')))

    def _keep(self, row: Row, sort: Tuple[str, ...]) -> None:
        """Rare sorts of rows whole, frequent ones at even distances."""
        if sort not in self._kept:
            if len(self._kept) >= MAX_SORTS:
                sort = sort[:1]
            self._kept.setdefault(sort, EvenSample())
        item = self._so_far.num_rows, self._iter_of(row), row
        if not self._kept[sort].add(item):
            return
        self._num_kept += 1
        if self._num_kept > self._max_kept:
            longest = max(self._kept.values(), key=len)
            self._num_kept -= len(longest)
            longest.drop_every_second()
            self._num_kept += len(longest)

    def _events(self) -> Tuple[Row, ...]:
        """In their order; those before their update get its iteration."""
        kept = [item for each in self._kept.values() for item in each.items]
        iters = {row.get('id'): iter_ for _, iter_, row in kept if iter_}
        return tuple(
            {**row, 'place': place, 'iter': iter_ or iters.get(row.get('id'))}
            for place, iter_, row in sorted(kept, key=lambda item: item[0])
        )

    def summary(self, last_iter: int) -> Summary:
        """What was read so far."""
        events = self._events()
        others: Dict[str, List[Row]] = {}
        for row in events:
            if row.get('kind') not in ('update', 'start'):
                others.setdefault(str(row.get('kind')), []).append(row)
        return replace(
            self._so_far,
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
        named = ranked(self._named.values())
        batches = self._samples.most_common(NUM_RANKED + len(named))
        others = [
            Culprit(name)
            for name, num in batches
            if num > 1 and name not in self._named
        ]
        both = (*named, *others)[:NUM_RANKED]
        return tuple(
            replace(one, num_batches=self._samples[one.name]) for one in both
        )


def ranked(culprits: Iterable[Culprit]) -> Tuple[Culprit, ...]:
    def order(one: Culprit) -> Tuple[int, int]:
        return -one.count, -one.num_routine

    return tuple(sorted(culprits, key=order)[:NUM_RANKED])
