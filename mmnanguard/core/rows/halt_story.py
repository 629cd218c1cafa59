"""The text that a halted run leaves behind, in its log and its last row."""

from collections import Counter
from typing import List, Sequence, Tuple

from mmnanguard._support.escape import escape

from ..causes import CAUSES, facts_of_cause
from ..rules.policy import GuardPolicy
from .guard_event import GuardEvent

__all__ = ['write_halt_story']

MAX_NAMES = 5


def write_halt_story(
    event: GuardEvent, streak: Sequence[GuardEvent], policy: GuardPolicy
) -> str:
    """Write the whole story of a halt.

    The person who reads it next morning may have nothing but the log.

    Args:
        event: The update that stopped the run.
        streak: The rejected updates of the present streak, oldest first,
            ``event`` last.
        policy: The policy, with the limits that were in force.
    """
    causes, names = count_blame(streak)
    damage = 'nothing bad was committed'
    if CAUSES[event.cause].was_committed:
        damage = 'an earlier step of the optimizer spoiled the weights'
    lines = [
        f'training halted at iteration {event.iter}, optimizer '
        f"'{event.optimizer}'; {damage}.",
        event.line(),
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
    if event.loss_scale is not None:
        lines.append(f'Loss scale now: {event.loss_scale["after"]:g}')
    facts = CAUSES[event.cause]
    is_sudden = facts.ends_run
    # A cause that ends a run at once does so whatever the skips before it.
    # After a streak, the last update is only one of many.
    if not is_sudden:
        facts = facts_of_cause(causes[0][0])
    advice = facts.advice_for(has_scale=event.loss_scale is not None)
    lines.append(f'What to try: {advice.long}')
    # Higher limits would not keep a run with bad weights going.
    if not is_sudden:
        lines.append(
            'To go on longer: optim_wrapper.guard=dict('
            'max_consecutive_skips=..., max_skip_rate=...); None means no '
            'limit.'
        )
    return '\n  '.join(map(escape, lines))


Counts = List[Tuple[str, int]]


def count_blame(streak: Sequence[GuardEvent]) -> Tuple[Counts, Counts]:
    """Return the causes and the first tensors of a streak, by frequency."""
    causes, names = [], []
    for event in streak:
        causes.append(event.cause.value)
        # The tensors after the first are often bad because of it.
        if event.params:
            names.append(f"'{event.params[0].name}'")
    return Counter(causes).most_common(), Counter(names).most_common()


def tally(counts: Counts) -> str:
    """Return names with their counts, such as 'spike x3, divergence x1'."""
    return ', '.join(f'{name} x{count}' for name, count in counts)
