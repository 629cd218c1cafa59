"""The advice on an optimizer whose step makes NaN of finite gradients."""

from dataclasses import replace
from typing import Sequence

from .causes import CAUSES, Advice
from .rows.guard_event import GuardEvent

__all__ = ['advise_on_step']

# A sum of squares of gradients with such a norm may overflow float32.
LARGE_NORM = 1e9
CHECK_ALWAYS = (
    ' Then resume from a checkpoint written before; '
    "optim_wrapper.guard.check_step='always' undoes such a step."
)


def advise_on_step(events: Sequence[GuardEvent], general: Advice) -> Advice:
    """Return the advice that the arguments of an optimizer suggest.

    Args:
        events: The updates of a streak, oldest first.
        general: The advice for an optimizer with ordinary arguments.
    """
    if not events or events[-1].step is None:
        return general
    event, step = events[-1], events[-1].step
    cure = find_cure(event)
    if not cure:
        return general
    long = f'The optimizer is at fault, not the data: {cure}'
    if CAUSES[event.cause].was_committed:
        long += CHECK_ALWAYS
    short = general.short
    if step.get('nonfinite'):
        short = f'look at param_scheduler: {", ".join(step["nonfinite"])}'
        if CAUSES[event.cause].was_committed:
            short += ', and resume from the last clean checkpoint'
    return replace(general, short=short, long=long, detail='')


def find_cure(event: GuardEvent) -> str:
    """Return sentences about the suspicious argument; '' if there is none."""
    step = event.step or {}
    settings = step.get('settings', {})
    if step.get('nonfinite'):
        return (
            'its learning rate or another setting is not finite ('
            f'{", ".join(step["nonfinite"])}): look at param_scheduler, and '
            'at hooks that set it.'
        )
    if settings.get('eps', 1.0) < 1e-38:
        return (
            f'eps={settings["eps"]:g} divides 0 by 0 where a gradient was '
            'always 0: set optim_wrapper.optimizer.eps=1e-8.'
        )
    if settings.get('dtype') == 'float16':
        return cure_float16(settings.get('eps', 1.0))
    if settings.get('centered'):
        return (
            'centered=True takes the root of a difference that rounding makes '
            'negative: set optim_wrapper.optimizer.centered=False, or a '
            'larger eps.'
        )
    if event.grad_norm > LARGE_NORM:
        return (
            f'its sums overflow under a gradient norm of '
            f'{event.grad_norm:.3g}: set '
            'optim_wrapper.clip_grad=dict(max_norm=...).'
        )
    return ''


def cure_float16(eps: float) -> str:
    """Return sentences about a step of weights in float16."""
    # Half of the smallest number above 0 rounds to 0.
    if eps <= 2.0**-25:
        return (
            f'eps={eps:g} is 0 in float16, so that the step divides 0 by 0: '
            'set optim_wrapper.optimizer.eps=1e-4, or train in bfloat16.'
        )
    return (
        'its weights or state are in float16, which ends at 65504: keep them '
        'in float32 or bfloat16.'
    )
