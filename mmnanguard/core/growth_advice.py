"""The advice on a run whose losses and gradient norms exploded."""

import math
from typing import Sequence, Tuple

from .causes import Advice
from .evidence import Evidence
from .rows.phrases import plural
from .rules.recent_commits import NUM_SHOWN, Growth

__all__ = [
    'BOUND_THE_LOSS',
    'NO_LOWER_BOUND',
    'clip_line',
    'explain_growth',
    'explain_settings',
]

SLOW_DOWN = 'lower the learning rate or lengthen warm-up, and clip'
BOUND_THE_LOSS = 'give the loss a lower bound'
NO_LOWER_BOUND = (
    'The loss fell below 0 without any sign of a lower bound: if it has none, '
    'weights grow for ever. Look at its sign and its weights, and bound it: '
    'by a gradient penalty for a critic, normalized embeddings in a '
    'contrastive loss, or a least variance in a density.'
)
LARGE_NORM = 1e3  # of the first gradients, where those of most nets are below


def explain_growth(growth: Growth, evidence: Evidence) -> Tuple[str, Advice]:
    """Return the reason and the advice for a run that exploded.

    Args:
        growth: The numbers before the first rejected update.
        evidence: All that is known about the rejected updates.
    """
    words = growth.words()
    if growth.is_uphill:
        return (
            f'the run exploded before it: {words}{rate_of(growth)}, which is '
            'negative',
            Advice(
                'look at param_scheduler: the learning rate is negative',
                f'The learning rate is negative ({growth.lr:.3g}), so that '
                f'each step goes uphill. {numbers_grew(words)}. Look at '
                'param_scheduler, such as a schedule that goes on past its '
                'end, and at hooks that set the learning rate.',
            ),
        )
    if evidence.uphill:
        reason, advice = explain_settings(evidence.uphill)
        return (
            f'the run exploded before it: {words}, with {reason}',
            Advice(advice.short, f'{numbers_grew(words)}. {advice.long}'),
        )
    if growth.jump > 0:
        return explain_jump(growth, evidence)
    if growth.factor == 0:
        return explain_early_end(growth, evidence)
    if growth.is_bottomless:
        return (
            f'the loss fell without bound before it: {words}',
            Advice(
                BOUND_THE_LOSS,
                f'{numbers_grew(words)}{rate_of(growth)}. {NO_LOWER_BOUND} '
                'A lower learning rate or clipping would then only delay it.',
            ),
        )
    return (
        f'the run exploded before it: {words}{rate_of(growth)}',
        Advice(
            SLOW_DOWN,
            f'{numbers_grew(words)}{rate_of(growth)}. {slow_down(growth)}',
        ),
    )


def explain_settings(settings: Sequence[str]) -> Tuple[str, Advice]:
    """Return the settings in words, and the advice to change them."""
    words = ', and '.join(settings)
    smaller = ''
    if 'weight_decay' in words:
        smaller = ' A weight_decay is usually between 0 and 0.1.'
    return (
        words,
        Advice(
            f'change the optimizer: it has {words}',
            f'The optimizer has {words}. Change that in '
            'optim_wrapper.optimizer, or where a schedule or hook sets it.'
            f'{smaller}',
        ),
    )


def explain_jump(growth: Growth, evidence: Evidence) -> Tuple[str, Advice]:
    """Return the reason and the advice for one batch out of line."""
    words, usual = growth.words(), growth.usual_norm
    first = f' (iteration {evidence.since})' if evidence.since else ''
    return (
        f'one batch jumped before it: {words}',
        Advice(
            'look at the batch right before it, and clip gradients',
            f'The gradient norm of one batch jumped to {growth.jump:.3g}, '
            f'{growth.jump / usual:.1g} times the usual norm ({words}), and '
            'its update spoiled the weights. Look at the samples of that '
            f'batch, which came right before the first rejected update{first},'
            f' and set {clip_to(growth)}. Nothing had grown until then, so '
            'that a lower learning rate helps little.',
        ),
    )


def explain_early_end(
    growth: Growth, evidence: Evidence
) -> Tuple[str, Advice]:
    """Return the reason and the advice for a run with its first steps only."""
    words, num = growth.words(), len(growth.losses)
    or_float16 = ''
    if evidence.has_float16:
        or_float16 = (
            ' Or numbers above the 65504 of float16 came up, which '
            "optim_wrapper.dtype='bfloat16' would show."
        )
    return (
        f'no update followed the first {num}: {words}{rate_of(growth)}',
        Advice(
            SLOW_DOWN,
            f'No batch is finite since the first {plural("step", num)} '
            f'({words}), so that they are the first suspects'
            f'{rate_of(growth)}. {slow_down(growth)}{or_float16}',
        ),
    )


def numbers_grew(words: str) -> str:
    """Return the sentence on the numbers of a growth, without a full stop."""
    return f'The numbers of commits grew before the last streak: {words}'


def rate_of(growth: Growth) -> str:
    """Return the words on the learning rate; '' if it is not known."""
    if not math.isfinite(growth.lr):
        return ''
    return f' at a learning rate of {growth.lr:.3g}'


def clip_to(growth: Growth) -> str:
    """Return the setting that would clip gradients to their usual norm."""
    line = clip_line(growth)
    if not line:
        return (
            'optim_wrapper.clip_grad to a lower norm than now, such as a '
            'tenth of it'
        )
    if has_usual_norm(growth):
        return f'{line}, the usual norm before'
    return (
        f'{line}, which is a convention, because no norm of a sound run was '
        'seen'
    )


def clip_line(growth: Growth) -> str:
    """Return the config line that clips; '' if something clips already."""
    if growth.clip_coef < 1:
        return ''
    norm = growth.usual_norm if has_usual_norm(growth) else 1.0
    return f'optim_wrapper.clip_grad=dict(max_norm={norm:.2g})'


def has_usual_norm(growth: Growth) -> bool:
    """Whether the norm before the explosion is known."""
    return math.isfinite(growth.usual_norm) and growth.usual_norm > 0


def slow_down(growth: Growth) -> str:
    """Return the sentences on the learning rate, clipping and inputs."""
    sentences = (
        f'Lower the learning rate or lengthen warm-up, and set '
        f'{clip_to(growth)}; clipping holds back SGD, but hardly Adam and '
        'its like.'
    )
    is_at_once = len(growth.grad_norms) < NUM_SHOWN
    if is_at_once and growth.grad_norms[0] > LARGE_NORM:
        sentences += (
            f' The gradient norm was {growth.grad_norms[0]:.3g} in the first '
            'step: normalize inputs and targets.'
        )
    return sentences
