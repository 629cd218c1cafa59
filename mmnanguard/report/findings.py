from collections import Counter
from typing import List, NamedTuple, Optional

from mmnanguard.core import Cause
from mmnanguard.core.causes import facts_of_cause
from mmnanguard.core.rows.read_row import sentence_of

from .summary import Summary

__all__ = ['Finding', 'collect_findings']

# Of the same parameter, or the same cause where none can be blamed:
NUM_REPEATS = 5  # rejected updates at least,
REPEAT_RATE = 1e-3  # and this share of all updates since the first of them.
# Of all together:
NUM_REJECTED = 10
REJECTED_RATE = 1e-2
# At the end of what is known:
NUM_AT_END = 5  # rejected updates
LENGTH_OF_END = 200  # iterations
NUM_IN_A_ROW = 3
WEIGHTS = Cause.WEIGHT_NONFINITE.value


class Finding(NamedTuple):
    """One reason to call a run sick.

    Attributes:
        since: Iteration at which it began.
        cause: See ``Cause``.
        what: Happened; a clause.
    """

    since: int
    cause: str
    what: str


def collect_findings(summary: Summary) -> List[Finding]:
    """Of a run that is sick, the gravest first; see :func:`judge`."""
    found = [
        of_halt(summary),
        of_streak(summary),
        of_audits(summary),
        of_rollbacks(summary),
        of_end(summary),
        of_repeats(summary),
        of_rate(summary),
    ]
    return [trouble for trouble in found if trouble is not None]


def of_halt(summary: Summary) -> Optional[Finding]:
    if summary.halt is None:
        return None
    halt, last = summary.halt, summary.last or {}
    iter_ = halt.get('iter') or summary.last_iter
    audits = {row.get('id') for row in summary.others.get('audit', ())}
    if halt.get('id') in audits or not last:
        cause, after = WEIGHTS, ''
    else:
        cause, num = str(last.get('cause')), last.get('consecutive_skips') or 0
        after = f' after {num:,} skips in a row' if num > 1 else ''
    what = f'halted at iteration {iter_:,}{after} ({cause})'
    return Finding(began(summary, iter_), cause, what)


def of_streak(summary: Summary) -> Optional[Finding]:
    last = summary.last or {}
    iter_, num = last.get('iter') or 0, last.get('consecutive_skips') or 0
    if num < NUM_IN_A_ROW or iter_ < summary.last_iter:
        return None
    cause = str(last.get('cause'))
    what = f'the last {num:,} updates were all rejected ({cause})'
    since = last.get('since') or began(summary, iter_)
    return Finding(since, cause, what)


def of_audits(summary: Summary) -> Optional[Finding]:
    audits = summary.others.get('audit')
    if not audits:
        return None
    what = f'an audit found that {sentence_of(audits[0])}'
    return Finding(audits[0].get('iter') or 0, WEIGHTS, what)


def of_rollbacks(summary: Summary) -> Optional[Finding]:
    rows = summary.others.get('rollback')
    if not rows:
        return None
    first, last = rows[0].get('iter') or 0, rows[-1].get('iter') or 0
    causes = {
        row.get('id'): str(row.get('cause'))
        for row in summary.events
        if row.get('kind') == 'update'
    }
    cause = causes.get(rows[-1].get('id'), WEIGHTS)  # else it is an audit's
    num = summary.num_kinds['rollback']
    times = f' {num} times, the last time' if num > 1 else ''
    what = f'went back to an earlier state{times} at iteration {last:,}'
    return Finding(began(summary, first), cause, f'{what} ({cause})')


def of_end(summary: Summary) -> Optional[Finding]:
    begin = summary.last_iter - LENGTH_OF_END
    causes = [cause for iter_, cause in summary.recent if iter_ > begin]
    num = len(causes)
    if num < NUM_AT_END:
        return None
    cause = Counter(causes).most_common(1)[0][0]
    what = f'{num} of the last {LENGTH_OF_END} updates were rejected'
    since = summary.episodes[-1].first
    return Finding(since, cause, f'{what}, most often for {cause}')


def of_repeats(summary: Summary) -> Optional[Finding]:
    """Of the one that spoilt the most."""
    cures = [row.get('iter') or 0 for row in summary.others.get('remedy', ())]
    blamed = [*summary.parameters, *summary.blameless]
    for one in sorted(blamed, key=lambda one: -one.count):
        first, last = one.first or 0, one.last or 0
        num_iters = summary.last_iter - first + 1
        is_often = one.count >= max(NUM_REPEATS, REPEAT_RATE * num_iters)
        if not is_often or any(iter_ >= last for iter_ in cures):
            continue
        anomalies = [k for k in one.causes if not facts_of_cause(k).is_routine]
        cause = max(anomalies, key=one.causes.__getitem__)
        name = f" of '{one.name}'" if one.name else ''
        what = (
            f'{one.count:,} updates were rejected for {cause}{name}, the last '
            f'at iteration {last:,}'
        )
        return Finding(first, cause, what)
    return None


def of_rate(summary: Summary) -> Optional[Finding]:
    num = summary.num_skipped
    if num < NUM_REJECTED:
        return None
    first = summary.episodes[0].first
    rate = num / (summary.last_iter - first + 1)
    if rate < REJECTED_RATE:
        return None
    cause = summary.anomalies[0]
    what = f'{num:,} updates were rejected, {rate:.1%} of all since then'
    return Finding(first, cause, what)


def began(summary: Summary, iter_: int) -> int:
    """Where the trouble of that iteration began."""
    for episode in summary.episodes:
        if episode.first <= iter_ <= episode.last:
            return episode.first
    return iter_
