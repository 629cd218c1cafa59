"""The evidence on a finding, from the rows of a run."""

from typing import List, Optional, Sequence, TypeVar

from mmnanguard.core import Action, Autopsy, GuardEvent
from mmnanguard.core.evidence import Evidence
from mmnanguard.core.rows.input_row import InputRow
from mmnanguard.core.rows.read_row import record_of
from mmnanguard.core.rows.row_record import RowRecord

from .findings import Finding
from .summary import Summary

__all__ = ['collect_evidence']

R = TypeVar('R', bound=RowRecord)


def collect_evidence(
    summary: Summary, finding: Optional[Finding] = None
) -> Evidence:
    """Return the evidence on a finding, or on all that a run rejected."""
    alike: List[GuardEvent] = []
    # Commits with a bad loss and finite gradients are frequent.
    committed: List[GuardEvent] = []
    for row in summary.events:
        record = record_of(row)
        if not isinstance(record, GuardEvent):
            continue
        is_alike = not record.is_routine
        if finding is not None:
            is_alike = record.cause.value == finding.cause
        if is_alike and record.action is not Action.STEP:
            alike.append(record)
        elif is_alike and record.is_harmless_commit:
            committed.append(record)
    cause, since = '', 0
    if finding is not None:
        cause, since = finding.cause, finding.since
    events = [event for event in alike if event.iter >= since]
    # The run has a limited number of autopsies, and similar updates share
    # one: those of the trouble, or else those of earlier updates like it.
    autopsies = joined(summary.records(Autopsy), events)
    autopsies = autopsies or joined(summary.records(Autopsy), alike)
    inputs = summary.records(InputRow)
    if finding is not None:
        inputs = joined(inputs, events)
    num_iters = 1
    committed = [event for event in committed if event.iter >= since]
    num_bad = len(events) + len(committed)
    if events:
        num_iters = max(summary.last_iter - events[0].iter + 1, num_bad)
    share = num_bad / num_iters
    return Evidence(cause, events, autopsies, inputs, share)


def joined(records: Sequence[R], events: Sequence[GuardEvent]) -> List[R]:
    """Return the records whose ids are those of the events."""
    ids = {event.id for event in events}
    return [record for record in records if getattr(record, 'id', '') in ids]
