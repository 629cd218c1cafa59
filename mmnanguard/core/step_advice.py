"""The advice on an optimizer whose step makes NaN of finite gradients."""

import math
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

from .causes import CAUSES, Advice
from .rows.guard_event import GuardEvent
from .rows.phrases import and_more

__all__ = [
    'advise_on_step',
    'bad_at_any_rate',
    'impossible_settings',
    'maximized',
    'uphill_settings',
]

# A sum of squares of gradients with such a norm may overflow float32.
LARGE_NORM = 1e9
CHECK_ALWAYS = (
    ' Then resume from a checkpoint written before; '
    "optim_wrapper.guard.check_step='always' undoes such a step."
)
CHANGE = "change the optimizer's arguments"


class Cure(NamedTuple):
    """A cure for the steps of an optimizer.

    Attributes:
        short: The recommendation in a few words.
        long: The sentence with its reason, from its second clause on.
    """

    short: str
    long: str


def advise_on_step(events: Sequence[GuardEvent], general: Advice) -> Advice:
    """Return the advice that the evidence about a step suggests.

    Args:
        events: The updates of a streak, oldest first.
        general: The advice for an optimizer without any evidence.
    """
    if not events or not isinstance(events[-1].step, dict):
        return general
    event, step = events[-1], events[-1].step
    cure = find_cure(step, event.grad_norm)
    short = cure.short
    long = f'The optimizer is at fault, not the data: {cure.long}'
    if CAUSES[event.cause].was_committed:
        long += CHECK_ALWAYS
        short += ', and resume from the last clean checkpoint'
    return Advice(short, long)


def uphill_settings(step: Optional[Mapping[str, Any]]) -> List[str]:
    """Return the settings with which an optimizer may go uphill, in words.

    Args:
        step: The value of ``step`` in an event.
    """
    return [*impossible_settings(step), *maximized(step)]


def maximized(step: Optional[Mapping[str, Any]]) -> List[str]:
    """Return the setting that makes the loss rise on purpose, in words.

    Args:
        step: The value of ``step`` in an event.
    """
    if step and step.get('settings', {}).get('maximize'):
        return ['maximize=True, which makes the loss rise']
    return []


def impossible_settings(step: Optional[Mapping[str, Any]]) -> List[str]:
    """Return the settings with which no training can go well, in words.

    Args:
        step: The value of ``step`` in an event.
    """
    return [*excessive_decay(step), *bad_at_any_rate(step)]


def excessive_decay(step: Optional[Mapping[str, Any]]) -> List[str]:
    """Return the weight decay that overshoots 0 ever further, in words.

    A lower learning rate would help as well.

    Args:
        step: The value of ``step`` in an event.
    """
    words: List[str] = []
    settings = (step or {}).get('settings', {})
    limit = most_decay((step or {}).get('optimizer', ''), settings)
    for rate in numbers_of(settings.get('lr')):
        for decay in numbers_of(settings.get('weight_decay')):
            if decay > 0 and rate * decay > limit:
                words.append(
                    f'weight_decay={decay:g}, which makes all weights grow, '
                    f'for lr * weight_decay is above {limit:g}'
                )
    return words


def bad_at_any_rate(step: Optional[Mapping[str, Any]]) -> List[str]:
    """Return the settings that no lower learning rate can mend, in words.

    Args:
        step: The value of ``step`` in an event.
    """
    words: List[str] = []
    settings = (step or {}).get('settings', {})
    for rate in numbers_of(settings.get('lr')):
        if rate < 0:
            words.append(f'lr={rate:g}, a negative learning rate')
    for decay in numbers_of(settings.get('weight_decay')):
        if decay < 0:
            words.append(
                f'weight_decay={decay:g}, which makes all weights grow'
            )
    for momentum in numbers_of(settings.get('momentum')):
        if momentum >= 1:
            words.append(
                f'momentum={momentum:g}, with which past gradients never fade'
            )
    for beta in numbers_of(settings.get('betas')):
        if beta >= 1:
            words.append(f'a beta of {beta:g}, with which it never forgets')
    return words


def most_decay(optimizer: str, settings: Mapping[str, Any]) -> float:
    """Return the product of rate and decay above which weights grow.

    It is not known for optimizers that normalize the decay, such as Adam.
    """
    if optimizer == 'AdamW':
        return 2.0
    if optimizer == 'SGD':
        # The limit of gradient descent with a heavy ball.
        return 2.0 * (1.0 + max(numbers_of(settings.get('momentum', 0.0))))
    return math.inf


def numbers_of(setting: Any) -> Sequence[float]:
    """Return the numbers of a setting that may be missing or a pair."""
    if setting is None:
        return ()
    return setting if isinstance(setting, (list, tuple)) else (setting,)


def find_cure(step: Dict[str, Any], grad_norm: float) -> Cure:
    """Return the cure for what a step is known to suffer from.

    Args:
        step: The value of ``step`` in an event.
        grad_norm: The norm of the gradients of that event.
    """
    settings = step.get('settings', {})
    stepper = step.get('optimizer', 'the optimizer')
    if step.get('nonfinite'):
        names = ', '.join(step['nonfinite'])
        return Cure(
            f'look at param_scheduler: {names}',
            f'its learning rate or another setting is not finite ({names}): '
            'look at param_scheduler, and at hooks that set it.',
        )
    if step.get('bad_state'):
        first, *others = step['bad_state']
        return Cure(
            "load the weights without the optimizer's state",
            f"its state was not finite before the step ('{first}'"
            f'{and_more(len(others))}), as in a checkpoint that was written '
            'so, and no argument repairs that. Resume from a checkpoint whose '
            'state is finite (python -m mmnanguard scan_checkpoints WORK_DIR '
            'lists them), or begin with the weights alone: '
            'load_from=CHECKPOINT, resume=False.',
        )
    if step.get('made_settings'):
        names = ', '.join(step['made_settings'])
        return Cure(
            f'look where {stepper} computes {names}',
            f'it has set {names} in this step, and what it computes with it '
            'is not finite either. Look in its step for a division by a '
            'number of steps or epochs that is 0.',
        )
    if settings.get('eps', 1.0) < 1e-38:
        return Cure(
            CHANGE,
            f'eps={settings["eps"]:g} divides 0 by 0 where a gradient was '
            'always 0: set optim_wrapper.optimizer.eps=1e-8.',
        )
    if settings.get('dtype') == 'float16':
        return cure_float16(settings.get('eps', 1.0))
    if max(numbers_of(settings.get('betas')), default=0.0) >= 1:
        return Cure(
            CHANGE,
            f'betas={tuple(settings["betas"])}: with a beta of 1 the '
            'correction of the bias divides by 0. Set it below 1.',
        )
    impossible = impossible_settings(step)
    if impossible:
        return Cure(CHANGE, f'it has {", and ".join(impossible)}.')
    if settings.get('centered'):
        return Cure(
            CHANGE,
            'centered=True takes the root of a difference that rounding makes '
            'negative: set optim_wrapper.optimizer.centered=False. An eps '
            'cannot help, for it is added after the root.',
        )
    if grad_norm > LARGE_NORM:
        return Cure(
            'clip gradients',
            f'its sums overflow under a gradient norm of {grad_norm:.3g}: set '
            'optim_wrapper.clip_grad=dict(max_norm=...).',
        )
    eps = ''
    if 'eps' in settings:
        eps = f', which its eps={settings["eps"]:g} does not reach'
    if step.get('zero_gradients'):
        first, *others = step['zero_gradients']
        return Cure(
            f'add an epsilon to the step of {stepper}',
            f"gradients of '{first}'{and_more(len(others))} are exactly 0, in "
            f'whole or in part, and {stepper} seems to divide by them or by '
            f'their norm{eps}. Add an epsilon to that division.',
        )
    return Cure(
        f'look at the step of {stepper}',
        f'{stepper} made NaN or Inf of finite gradients, and its arguments '
        f'are ordinary. Look in its step for a division by a norm or a mean '
        f'that may be 0{eps}, or by 1 - beta ** step with a step of 0, for '
        'roots of differences, and for sums of squares, which overflow under '
        'huge gradients; '
        'optim_wrapper.clip_grad=dict(max_norm=...) helps against those.',
    )


def cure_float16(eps: float) -> Cure:
    """Return the cure for a step of weights in float16."""
    # Half of the smallest number above 0 rounds to 0.
    if eps <= 2.0**-25:
        return Cure(
            CHANGE,
            f'eps={eps:g} is 0 in float16, so that the step divides 0 by 0: '
            'set optim_wrapper.optimizer.eps=1e-4, or train in bfloat16.',
        )
    return Cure(
        'keep weights in float32 or bfloat16',
        'its weights or state are in float16, which ends at 65504: keep them '
        'in float32 or bfloat16.',
    )
