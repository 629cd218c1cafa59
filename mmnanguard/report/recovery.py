"""Whether a run went on well after its trouble."""

import math
from statistics import median
from typing import List, Optional, Sequence

from .findings import Finding
from .read_scalars import Curve
from .summary import Summary

__all__ = ['count_clean_iters', 'was_treated']

# The least number of iterations after the last trouble: 200, or half of a
# shorter run, but never a handful.
LENGTH = 200
LEAST_LENGTH = 10
# Rare faults come back: the quiet has to last longer than they stayed away.
NUM_GAPS = 5
# The loss at the end is compared with the one before the trouble.
NUM_POINTS = 5  # logged values whose median is compared
TOLERANCE = 0.1  # of the loss before the trouble


def count_clean_iters(
    summary: Summary, findings: Sequence[Finding]
) -> Optional[int]:
    """Return how many iterations a run went well after its trouble.

    None if the run has not recovered: a finding does not pass, the trouble
    was too recent, or the loss is higher than it was before.

    Args:
        summary: The summary of the run.
        findings: The findings on it, at least one.
    """
    if not all(finding.can_pass for finding in findings):
        return None
    if has_open_audit(summary) or summary.log_nonfinite_since is not None:
        return None
    last = last_trouble(summary)
    num_clean = summary.last_iter - last
    length = min(LENGTH, summary.num_iters // 2)
    needed = max(length, LEAST_LENGTH, NUM_GAPS * mean_gap(summary))
    begin = min(finding.since for finding in findings)
    if num_clean < needed or not is_back(summary.loss, begin, last):
        return None
    return num_clean


def last_trouble(summary: Summary) -> int:
    """Return the iteration of the last rejection, rollback or bad audit."""
    last = max((episode.last for episode in summary.episodes), default=0)
    for kind in ('rollback', 'audit'):
        for row in summary.others.get(kind, ()):
            last = max(last, row.get('iter') or 0)
    return last


def has_open_audit(summary: Summary) -> bool:
    """Whether no earlier state was loaded after the last bad audit."""
    audits = summary.others.get('audit', ())
    if not audits:
        return False
    last = audits[-1].get('iter') or 0
    for row in summary.others.get('rollback', ()):
        if (row.get('iter') or 0) >= last:
            return False
    return not any((row.get('iter') or 0) > last for row in summary.starts)


def mean_gap(summary: Summary) -> float:
    """Return the mean number of iterations between two rejected updates."""
    if summary.num_skipped < 2:
        return 0.0
    first, last = summary.episodes[0].first, summary.episodes[-1].last
    return (last - first) / (summary.num_skipped - 1)


def is_back(curve: Optional[Curve], begin: int, last: int) -> bool:
    """Whether the loss at the end is not above the one before the trouble.

    Args:
        curve: The logged loss; without one, nothing speaks against it.
        begin: The iteration at which the trouble began.
        last: The iteration of the last trouble.
    """
    if curve is None:
        return True
    before: List[float] = []
    after: List[float] = []
    for iter_, value in zip(curve.iters, curve.values):
        if not math.isfinite(value):
            continue
        if iter_ < begin:
            before.append(value)
        elif iter_ > last:
            after.append(value)
    # If the trouble came before the first logged loss, the loss has to fall
    # from there on.
    before = before or after[:1]
    if not after:
        return True
    level = median(before[-NUM_POINTS:])
    return median(after[-NUM_POINTS:]) <= level + TOLERANCE * abs(level)


def was_treated(summary: Summary) -> bool:
    """Whether a run without findings had trouble that something ended.

    Either a remedy was applied after rejected updates, or an attempt halted
    and was resumed. Some iterations went well since.
    """
    if summary.last_iter - last_trouble(summary) < LEAST_LENGTH:
        return False
    is_remedied = summary.num_skipped > 0 and 'remedy' in summary.others
    return is_remedied or 'halt' in summary.others
