"""The text that a halted run leaves behind, in its log and its last row."""

from collections import Counter
from typing import Dict, List, NamedTuple, Sequence, Tuple

from mmnanguard._support.escape import escape

from ..causes import CAUSES
from ..diagnosis import diagnose
from ..evidence import Evidence
from ..rules.policy import GuardPolicy
from .autopsy import Autopsy
from .event_words import full_line
from .guard_event import GuardEvent
from .input_row import InputRow
from .row_record import RowRecord

__all__ = ['Finding', 'main_cause', 'write_halt_story']

MAX_NAMES = 5


class Finding(NamedTuple):
    """A record that explains an event.

    Attributes:
        event: The event.
        record: The autopsy of its update, or the findings on its inputs.
    """

    event: GuardEvent
    record: RowRecord


def write_halt_story(
    event: GuardEvent,
    streak: Sequence[GuardEvent],
    policy: GuardPolicy,
    findings: Sequence[Finding] = (),
) -> str:
    """Write the whole story of a halt.

    The person who reads it next morning may have nothing but the log.

    Args:
        event: The update that stopped the run.
        streak: The rejected updates of the present streak, oldest first,
            ``event`` last.
        policy: The policy, with the limits that were in force.
        findings: What explains updates of the run, oldest first.
    """
    causes, names = count_blame(streak)
    is_sudden = CAUSES[event.cause].ends_run
    cause = main_cause(event, streak)
    diagnosis = diagnose(collect_evidence(cause, streak, findings))
    reason = ''
    if diagnosis.reason:
        reason = f': {diagnosis.reason}'
    damage = 'nothing bad was committed'
    if CAUSES[event.cause].was_committed:
        damage = 'an earlier step of the optimizer spoiled the weights'
    lines = [
        f'training halted at iteration {event.iter}, optimizer '
        f"'{event.optimizer}'{reason}; {damage}.",
        full_line(event),
        f'Skips: {event.consecutive_skips} in a row since iteration '
        f'{event.since}, {event.total_skips} in all, besides '
        f'{event.routine_overflows} routine overflows (limits: '
        f'max_consecutive_skips={policy.max_consecutive_skips}, '
        f'max_skip_rate={policy.max_skip_rate} of '
        f'{policy.skip_rate_window}).',
        f'Causes: {tally(causes)}',
    ]
    # A divergence names no tensor.
    if names:
        lines.append(f'Blamed first: {tally(names[:MAX_NAMES])}')
    parts = event.bad_losses_in_words()
    if parts:
        lines.append(f'Parts of the loss that are not finite: {parts}')
    lines += describe_findings(cause, streak, findings)
    if event.loss_scale is not None:
        lines.append(f'Loss scale now: {event.loss_scale["after"]:g}')
    lines.append(f'What to try: {diagnosis.advice.long}')
    # Higher limits would not keep a run with bad weights going.
    if not is_sudden:
        lines.append(
            'To go on longer: optim_wrapper.guard=dict('
            'max_consecutive_skips=..., max_skip_rate=...); None means no '
            'limit.'
        )
    return '\n  '.join(map(escape, lines))


def main_cause(event: GuardEvent, streak: Sequence[GuardEvent]) -> str:
    """Return the value of the cause that a halt story explains.

    Args:
        event: The update that stopped the run.
        streak: The rejected updates of the present streak.
    """
    # A cause that ends a run at once does so whatever the skips before it.
    if CAUSES[event.cause].ends_run:
        return event.cause.value
    # After a streak, the last update is only one of many.
    causes, _ = count_blame(streak)
    return causes[0][0]


def collect_evidence(
    cause: str, streak: Sequence[GuardEvent], findings: Sequence[Finding]
) -> Evidence:
    """Return the evidence on the updates of a streak with a cause."""
    events = [event for event in streak if event.cause.value == cause]
    autopsies, inputs = [], []
    for finding in of_streak(cause, streak, findings):
        if isinstance(finding.record, Autopsy):
            autopsies.append(finding.record)
        elif isinstance(finding.record, InputRow):
            inputs.append(finding.record)
    num_iters = streak[-1].iter - streak[0].iter + 1
    share = len(streak) / max(num_iters, 1)
    return Evidence(cause, events, autopsies, inputs, share)


def of_streak(
    cause: str, streak: Sequence[GuardEvent], findings: Sequence[Finding]
) -> List[Finding]:
    """Return the findings with a cause on a streak, or else on earlier ones.

    The run has a limited number of autopsies, and similar updates share one.
    """
    alike = [item for item in findings if item.event.cause.value == cause]
    start = streak[0].iter
    recent = [finding for finding in alike if finding.event.iter >= start]
    return recent or alike


def describe_findings(
    cause: str, streak: Sequence[GuardEvent], findings: Sequence[Finding]
) -> List[str]:
    """Return a line for each finding that says something new."""
    lines: Dict[Tuple[str, ...], str] = {}
    for event, record in of_streak(cause, streak, findings):
        key: Tuple[str, ...] = (record.sentence(),)
        # Numbers differ from batch to batch.
        if isinstance(record, Autopsy) and record.op:
            key = record.phase, record.module, record.op, record.source
        line = f'Seen in iteration {event.iter}: {record.sentence()}'
        lines.setdefault(key, line)
    return list(lines.values())[:MAX_NAMES]


Counts = List[Tuple[str, int]]


def count_blame(streak: Sequence[GuardEvent]) -> Tuple[Counts, Counts]:
    """Return the causes and the first tensors of a streak, by frequency."""
    causes, names = [], []
    for event in streak:
        causes.append(event.cause.value)
        # The tensors after the first are often bad because of it. If the
        # loss is bad, so is the first one.
        if event.params and CAUSES[event.cause].names_origin:
            names.append(f"'{event.params[0].name}'")
    return Counter(causes).most_common(), Counter(names).most_common()


def tally(counts: Counts) -> str:
    """Return names with their counts, such as 'spike x3, divergence x1'."""
    return ', '.join(f'{name} x{count}' for name, count in counts)
