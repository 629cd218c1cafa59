"""The alerts of a run, and what came of them."""

from bisect import bisect_left
from operator import itemgetter
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from mmnanguard.core import Cause
from mmnanguard.core.rows.alert_row import AlertRow
from mmnanguard.core.rows.read_row import record_of
from mmnanguard.core.rows.row_record import NewRow

from .summary import Summary

__all__ = [
    'BAD_LOSS',
    'Alert',
    'alerts_of',
    'describe_warning',
    'first_after',
    'join_outcomes',
]

# The subject of an alert by its advice. Others are named after their number.
SUBJECTS = {'lr': 'learning rate', 'scale': 'loss scale'}
MAX_NAMED = 2  # subjects in a sentence
BAD_LOSS = Cause.LOSS_NONFINITE.value


class Incident(NamedTuple):
    """The begin of something that an alert may have announced.

    Attributes:
        iter: The iteration.
        words: The trouble in words, as in '5 iterations before ...'.
    """

    iter: int
    words: str


class Alert(NamedTuple):
    """An alert and what came of it.

    Attributes:
        row: The row of the alert.
        record: Its record.
        until: The iteration at which the alert was over; None if it never was.
        lead: The number of iterations between the alert and what came of it;
            None if nothing did.
        outcome: What came of it, in words.
    """

    row: NewRow
    record: AlertRow
    until: Optional[int]
    lead: Optional[int]
    outcome: str

    @property
    def subject(self) -> str:
        """The subject of the alert, in words."""
        return SUBJECTS.get(self.record.advice, self.record.name)


def alerts_of(summary: Summary) -> List[Alert]:
    """Return the alerts of a run in their order. A pure function."""
    alerts: List[Alert] = []
    incidents = other_incidents(summary)
    # The first iterations after which the alerts of a rule were over.
    ends: Dict[str, int] = {}
    for row in reversed(summary.others.get(AlertRow.KIND, [])):
        record = record_of(row)
        # A row of another version may be no such record.
        if not isinstance(record, AlertRow):
            continue
        if record.cleared is not None:
            ends[record.rule] = record.cleared
            continue
        lead, outcome = describe_outcome(summary, record.iter, incidents)
        if record.acted:
            outcome = f'acted on ({record.acted}), {outcome}'
        until = ends.get(record.rule)
        alerts.append(Alert(row, record, until, lead, outcome))
    return alerts[::-1]


def join_outcomes(summary: Summary) -> None:
    """Give the rows of alerts what came of them.

    Args:
        summary: The summary, whose rows are changed.
    """
    for alert in alerts_of(summary):
        alert.row.update(
            until=alert.until, lead=alert.lead, outcome=alert.outcome
        )


def other_incidents(summary: Summary) -> List[Incident]:
    """Return the incidents of a run that are no rejected updates."""
    incidents: List[Incident] = []
    for row in summary.others.get('audit', ()):
        iter_ = row.get('iter') or 0
        incidents.append(Incident(iter_, 'an audit found bad weights'))
    if summary.halt is not None:
        iter_ = summary.halt.get('iter') or summary.last_iter
        incidents.append(Incident(iter_, 'the run halted'))
    if summary.log_nonfinite_since is not None:
        iter_ = summary.log_nonfinite_since
        incidents.append(Incident(iter_, 'the logged loss was not finite'))
    rise = summary.log_rise
    if rise is not None and rise.is_explosion:
        iter_ = rise.since or summary.last_iter
        incidents.append(Incident(iter_, 'the loss exploded'))
    return incidents


def next_rejection(summary: Summary, begin: int) -> Optional[Incident]:
    """Return the first rejected update from an iteration on, or None."""
    rejections: List[Incident] = []
    has_earlier = False
    for cause, iters in summary.rejected.items():
        has_earlier = has_earlier or iters[0] < begin
        iter_ = first_after(iters, begin)
        if iter_ is not None:
            rejections.append(Incident(iter_, cause))
    if not rejections:
        return None
    first = min(rejections)
    which = 'next' if has_earlier else 'first'
    return Incident(first.iter, f'the {which} rejected update ({first.words})')


def describe_outcome(
    summary: Summary, begin: int, incidents: Sequence[Incident]
) -> Tuple[Optional[int], str]:
    """Return the lead of an alert and what came of it, in words.

    Args:
        summary: The summary of the run.
        begin: The iteration of the alert.
        incidents: The incidents that are no rejected updates.
    """
    after = [item for item in incidents if item.iter >= begin]
    rejection = next_rejection(summary, begin)
    if rejection is not None:
        after.insert(0, rejection)
    if after:
        # The first of equal ones: a rejected update, and not the halt by it.
        first = min(after, key=itemgetter(0))
        lead = first.iter - begin
        plural = 's' * (lead != 1)
        words = f'{lead:,} iteration{plural} before {first.words}'
        # Gradients that a lower loss scale mends come before those of a
        # forward pass that overflows.
        worse = first_after(summary.rejected.get(BAD_LOSS, ()), begin)
        if worse is not None and worse > first.iter:
            words += f', {worse - begin:,} before {BAD_LOSS}'
        return lead, words
    if summary.unguarded:
        # Nobody has judged the updates that came later.
        return None, 'what came of it is not known: not all is guarded'
    if summary.end is None and not summary.is_lost:
        return None, 'nothing has come of it so far'
    if not summary.is_over:
        return None, 'no update was rejected after it'
    return None, 'nothing came of it'


def first_after(iters: Sequence[int], begin: int) -> Optional[int]:
    """Return the first of rising iterations from ``begin`` on, or None."""
    place = bisect_left(iters, begin)
    return iters[place] if place < len(iters) else None


def describe_warning(summary: Summary, since: int, cause: str) -> str:
    """Return the clause on alerts that came before trouble; '' without one.

    An alert that was over before the trouble began has not announced it.

    Args:
        summary: The summary of the run.
        since: The iteration at which the trouble began.
        cause: The cause of the rejected updates; '' without any.
    """
    subjects = subjects_before(summary, since)
    # Updates of another cause may have begun the trouble.
    first = first_after(summary.rejected.get(cause, ()), since)
    if not subjects and first is not None:
        subjects = subjects_before(summary, first)
    clauses = []
    for subject, iter_ in list(subjects.items())[:MAX_NAMED]:
        clauses.append(f'at iteration {iter_:,}: {subject}')
    if not clauses:
        return ''
    return f'warned {", ".join(clauses)}'


def subjects_before(summary: Summary, since: int) -> Dict[str, int]:
    """Return the first iterations of open alerts, by their subject."""
    subjects: Dict[str, int] = {}
    for alert in alerts_of(summary):
        is_over = alert.until is not None and alert.until < since
        if alert.record.iter < since and not is_over:
            subjects.setdefault(alert.subject, alert.record.iter)
    return subjects
