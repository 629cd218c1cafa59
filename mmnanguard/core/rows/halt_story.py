from collections import Counter
from typing import Sequence

from ..rules.policy import GuardPolicy
from ..rules.verdict import Cause
from .guard_event import GuardEvent

__all__ = ['write_halt_story']

ADVICE = {
    Cause.WEIGHT_NONFINITE: (
        'Resume from a checkpoint written before; look for code that changes '
        'weights outside optim_wrapper.step (hooks, EMA swaps, .data).'
    ),
    Cause.INPUT_NONFINITE: (
        'Look at the samples named above and remove or repair them.'
    ),
    Cause.LOSS_NONFINITE: (
        'The forward pass makes it, so no loss scale and no clipping can '
        'help: look at the samples and at divisions, logs and square roots '
        "in the loss; under float16 try optim_wrapper.dtype='bfloat16' or "
        'float32.'
    ),
    Cause.BUFFER_NONFINITE: (
        'An activation overflows: look at the samples and at the layer that '
        'feeds the buffer; under float16 try bfloat16 or float32.'
    ),
    Cause.GRAD_NONFINITE: (
        'The backward pass makes it at a scale that lowering did not cure: '
        "try optim_wrapper.dtype='bfloat16' or float32 for the module named "
        'above, and look for sqrt, norm or division at zero.'
    ),
    Cause.NORM_OVERFLOW: (
        'Gradients explode: lower the learning rate, lengthen warm-up, or '
        'set optim_wrapper.clip_grad=dict(max_norm=...).'
    ),
    Cause.DIVERGENCE: (
        'What was learnt is being lost: lower the learning rate, lengthen '
        'warm-up, or clip; if losses rise by design, set '
        'optim_wrapper.guard.divergence=None.'
    ),
    Cause.SPIKE: (
        'Norm or loss stay above what they were: lower the learning rate, or '
        "let spikes pass, clipped: optim_wrapper.guard.spike.action='clip'."
    ),
}
# Without a loss scale nothing overflows for its sake.
UNSCALED_GRAD = (
    'The backward pass makes it of finite numbers: look for sqrt, norm or '
    'division at zero in the module named above; mmnanguard.AutopsyHook names '
    'the operation.'
)


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
    causes = Counter(item.cause.value for item in streak)
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
            f'{cause} x{count}' for cause, count in causes.most_common()
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
    cause = causes.most_common(1)[0][0]
    # These end a run at once, whatever the skips before them.
    is_sudden = event.cause in (Cause.WEIGHT_NONFINITE, Cause.DIVERGENCE)
    if is_sudden:
        cause = event.cause.value
    advice = ADVICE[Cause(cause)]
    if event.loss_scale is None and cause == Cause.GRAD_NONFINITE.value:
        advice = UNSCALED_GRAD
    lines.append(f'What to try: {advice}')
    if not is_sudden:
        lines.append(
            'To go on longer: optim_wrapper.guard=dict('
            'max_consecutive_skips=..., max_skip_rate=...); None means no '
            'limit.'
        )
    return '\n  '.join(lines)
