from collections import Counter
from typing import Sequence

from ..causes import CAUSES
from ..rules.policy import GuardPolicy
from .guard_event import GuardEvent

__all__ = ['write_halt_story']


def write_halt_story(
    event: GuardEvent, streak: Sequence[GuardEvent], policy: GuardPolicy
) -> str:
    """The whole story of a halt, for the person who reads it next morning.

    Args:
        event: The update that stopped the run.
        streak: The rejected updates of the present streak, oldest first,
            ``event`` last.
        policy: Says which limits were in force.
    """
    causes = Counter(item.cause for item in streak)
    names = Counter(bad.name for item in streak for bad in item.params[:1])
    lines = [
        f'training halted at iteration {event.iter}, optimizer '
        f"'{event.optimizer}'; nothing bad was committed.",
        event.line(),
        f'Skips: {event.consecutive_skips} in a row since iteration '
        f'{event.since}, {event.total_skips} in all, besides '
        f'{event.routine_overflows} routine overflows (limits: '
        f'max_consecutive_skips={policy.max_consecutive_skips}, '
        f'max_skip_rate={policy.max_skip_rate} of '
        f'{policy.skip_rate_window}).',
        'Causes: '
        + ', '.join(
            f'{cause.value} x{count}' for cause, count in causes.most_common()
        ),
    ]
    if names:
        lines.append(
            'Blamed first: '
            + ', '.join(
                f"'{name}' x{count}" for name, count in names.most_common(5)
            )
        )
    if event.loss_scale is not None:
        lines.append(f'Loss scale now: {event.loss_scale["after"]:g}')
    is_sudden = CAUSES[event.cause].ends_run
    # A cause that ends a run at once does so whatever the skips before it.
    cause = event.cause if is_sudden else causes.most_common(1)[0][0]
    advice = CAUSES[cause].advice_for(has_scale=event.loss_scale is not None)
    lines.append(f'What to try: {advice.long}')
    if not is_sudden:
        lines.append(
            'To go on longer: optim_wrapper.guard=dict('
            'max_consecutive_skips=..., max_skip_rate=...); None means no '
            'limit.'
        )
    return '\n  '.join(lines)
