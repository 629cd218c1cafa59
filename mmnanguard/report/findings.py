"""The rules that decide whether a run is sick.

One function per rule returns a :class:`Finding`, or None if the rule does not
apply. :func:`mmnanguard.report.assessment.judge` documents the rules.
"""

from collections import Counter
from itertools import filterfalse
from typing import List, NamedTuple, Optional

from mmnanguard.core import Cause
from mmnanguard.core.rows.end_row import FINISHED
from mmnanguard.core.rows.read_row import sentence_of

from .badge import CRASHED, NOT_GUARDED, SICK
from .summary import Culprit, Summary, is_routine

__all__ = ['Finding', 'collect_findings']

# The limits for a single parameter, or for a single cause if no parameter can
# be blamed. The rate keeps a long run with rare faults healthy.
NUM_REPEATS = 5  # rejected updates
REPEAT_RATE = 1e-3  # rejected updates per update since the first of them
# The limits for all rejected updates of a run.
NUM_REJECTED = 10
REJECTED_RATE = 1e-2
# The limits for the end of a run: trouble that has just begun does not reach
# the limits above.
NUM_AT_END = 5  # rejected updates
LENGTH_OF_END = 200  # iterations
NUM_IN_A_ROW = 3
WEIGHTS = Cause.WEIGHT_NONFINITE.value


class Finding(NamedTuple):
    """A reason to call a run sick.

    Attributes:
        since: Iteration at which the trouble began.
        cause: The cause of the trouble, as in the rows; '' if no update
            was judged to be bad.
        clause: The finding in words.
        badge: The badge of a run whose gravest finding this is.
        can_pass: Whether a run recovers from it by going on well.
    """

    since: int
    cause: str
    clause: str
    badge: str = SICK
    can_pass: bool = False


def collect_findings(summary: Summary) -> List[Finding]:
    """Return the findings on a run, the gravest first."""
    checked = (
        find_halt(summary),
        find_crash(summary),
        find_bad_checkpoint(summary),
        find_streak(summary),
        find_audits(summary),
        find_rollbacks(summary),
        find_bad_end(summary),
        find_repeats(summary),
        find_high_rate(summary),
        find_explosion(summary),
        find_unguarded(summary),
    )
    return list(filter(None, checked))


def find_halt(summary: Summary) -> Optional[Finding]:
    """Return the finding on a run that halted and was not resumed."""
    if summary.halt is None:
        return None
    halt, last = summary.halt, summary.last or {}
    iter_ = halt.get('iter') or summary.last_iter
    audit_ids = {row.get('id') for row in summary.others.get('audit', ())}
    # An audit can halt a run, too. The last update is then not the reason.
    cause, after = WEIGHTS, ''
    if last and halt.get('id') not in audit_ids:
        cause = str(last.get('cause'))
        num = last.get('consecutive_skips') or 0
        if num > 1:
            after = f' after {num:,} skips in a row'
    clause = f'halted at iteration {iter_:,}{after} ({cause})'
    # The last of several updates may have another cause than most of them.
    cause = str(halt.get('cause') or cause)
    return Finding(begin_of_trouble(summary, iter_), cause, clause)


def find_crash(summary: Summary) -> Optional[Finding]:
    """Return the finding on a run that an exception or a signal ended."""
    if summary.is_lost:
        last = summary.last_iter
        clause = f'ended without saying so at iteration {last:,}'
        return Finding(last, '', clause, CRASHED)
    end = summary.end
    if end is None or end.how == FINISHED:
        return None
    since = end.iter or summary.last_iter
    return Finding(since, '', end.sentence(), CRASHED)


def find_bad_checkpoint(summary: Summary) -> Optional[Finding]:
    """Return the finding on a run that has loaded NaN or Inf."""
    if not summary.loaded_bad:
        return None
    since = summary.starts[-1].get('iter') or 1
    first, *others = summary.loaded_bad
    names = first + ' and others' * bool(others)
    clause = (
        f'the checkpoint {summary.loaded} that it loaded before iteration '
        f'{since:,} is bad: NaN or Inf in {names}'
    )
    return Finding(since, '', clause)


def find_streak(summary: Summary) -> Optional[Finding]:
    """Return the finding on a run whose last updates were all rejected."""
    last = summary.last or {}
    iter_, num = last.get('iter') or 0, last.get('consecutive_skips') or 0
    # A clean update has no row. If the run went further than the last row,
    # the streak is over.
    if num < NUM_IN_A_ROW or iter_ < summary.last_iter:
        return None
    cause = str(last.get('cause'))
    clause = f'the last {num:,} updates were all rejected ({cause})'
    since = last.get('since') or begin_of_trouble(summary, iter_)
    return Finding(since, cause, clause)


def find_audits(summary: Summary) -> Optional[Finding]:
    """Return the finding on the first audit that found bad tensors."""
    # Audits without a bad tensor write no row.
    audits = summary.others.get('audit')
    if not audits:
        return None
    clause = f'an audit found that {sentence_of(audits[0])}'
    since = audits[0].get('iter') or 0
    return Finding(since, WEIGHTS, clause, can_pass=True)


def find_rollbacks(summary: Summary) -> Optional[Finding]:
    """Return the finding on a run that went back to an earlier state."""
    rows = summary.others.get('rollback')
    if not rows:
        return None
    first, last = rows[0].get('iter') or 0, rows[-1].get('iter') or 0
    # A rollback has the id of the update or audit that triggered it. The row
    # of an audit has no cause, and an audit counts as bad weights.
    cause = WEIGHTS
    for row in summary.events:
        is_reason = row.get('id') == rows[-1].get('id')
        if is_reason and row.get('kind') == 'update':
            cause = str(row.get('cause'))
    # `rows` may be only some of the rollbacks; `num_kinds` counts all.
    num = summary.num_kinds['rollback']
    times = f' {num} times, the last time' * (num > 1)
    clause = f'went back to an earlier state{times} at iteration {last:,}'
    since = begin_of_trouble(summary, first)
    return Finding(since, cause, f'{clause} ({cause})', can_pass=True)


def find_bad_end(summary: Summary) -> Optional[Finding]:
    """Return the finding on many rejected updates at the end of a run."""
    # A run may be shorter than that.
    length = min(LENGTH_OF_END, summary.num_iters)
    begin = summary.last_iter - length
    causes = [cause for iter_, cause in summary.recent if iter_ > begin]
    num = len(causes)
    if num < NUM_AT_END:
        return None
    cause = Counter(causes).most_common(1)[0][0]
    clause = f'{num} of the last {length} updates were rejected'
    since = summary.episodes[-1].first
    clause += f', most often for {cause}'
    return Finding(since, cause, clause, can_pass=True)


def find_repeats(summary: Summary) -> Optional[Finding]:
    """Return the finding on the most blamed parameter or cause."""
    last_remedy = -1
    for row in summary.others.get('remedy', ()):
        last_remedy = max(last_remedy, row.get('iter') or 0)
    suspects = [*summary.parameters, *summary.blameless]
    suspects.sort(key=count_of_blames, reverse=True)
    for suspect in suspects:
        # A remedy applied after the last blame is assumed to be the cure.
        is_cured = last_remedy >= (suspect.last or 0)
        if is_repeated(suspect, summary.last_iter) and not is_cured:
            return describe_repeats(suspect)
    return None


def count_of_blames(culprit: Culprit) -> int:
    """Return the number of blames, as a sort key."""
    return culprit.count


def is_repeated(culprit: Culprit, last_iter: int) -> bool:
    """Whether a culprit was blamed often enough to call the run sick."""
    num_iters = last_iter - (culprit.first or 0) + 1
    return culprit.count >= max(NUM_REPEATS, REPEAT_RATE * num_iters)


def describe_repeats(culprit: Culprit) -> Finding:
    """Return the finding on a culprit that was blamed often."""
    anomalies = filterfalse(is_routine, culprit.causes)
    cause = max(anomalies, key=culprit.causes.__getitem__)
    # A culprit without a name stands for all updates of a cause for which no
    # parameter can be blamed.
    name = f" of '{culprit.name}'" * bool(culprit.name)
    clause = (
        f'{culprit.count:,} updates were rejected for {cause}{name}, the last '
        f'at iteration {culprit.last or 0:,}'
    )
    return Finding(culprit.first or 0, cause, clause, can_pass=True)


def find_high_rate(summary: Summary) -> Optional[Finding]:
    """Return the finding on a high rate of rejected updates."""
    num = summary.num_skipped
    if num < NUM_REJECTED:
        return None
    # The rate counts from the first rejected update: a long clean beginning
    # would otherwise hide the trouble.
    first = summary.episodes[0].first
    rate = num / (summary.last_iter - first + 1)
    if rate < REJECTED_RATE:
        return None
    clause = f'{num:,} updates were rejected, {rate:.1%} of all since then'
    return Finding(first, summary.anomalies[0], clause, can_pass=True)


def find_explosion(summary: Summary) -> Optional[Finding]:
    """Return the finding on a loss that exploded, but stayed finite."""
    rise = summary.log_rise
    if rise is None or not rise.is_explosion:
        return None
    since = rise.since or summary.last_iter
    return Finding(since, '', f'the loss has exploded: {rise.words}')


def find_unguarded(summary: Summary) -> Optional[Finding]:
    """Return the finding on a run of which not all updates are guarded."""
    since = summary.log_nonfinite_since
    names = []
    for name, kind in summary.unguarded.items():
        names.append(f"optimizer '{name}' is run by {kind}")
    for row in summary.bypasses:
        if not row.is_guarded:
            names.append(row.finding.partition(': ')[2] or row.finding)
    if not names:
        return None
    clause = f'not guarded: {", ".join(names)}'
    if since is not None:
        clause += (
            f'; the logged loss is not finite from iteration {since:,} to '
            'the end'
        )
    return Finding(since or 1, '', clause, NOT_GUARDED)


def begin_of_trouble(summary: Summary, iter_: int) -> int:
    """Return the iteration at which the episode around ``iter_`` began.

    Returns ``iter_`` itself if it belongs to no episode.
    """
    for episode in summary.episodes:
        if episode.first <= iter_ <= episode.last:
            return episode.first
    return iter_
