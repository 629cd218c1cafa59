"""The rules, one function each: what a sample says about one limit."""

import math
from typing import Any, Dict, Mapping, NamedTuple, Optional, Sequence

from ..rows.alert_row import (
    ATTENTION_LOGITS,
    HEADROOM,
    OPERANDS,
    UNDERFLOW,
    UPDATE_RATIO,
)
from .headroom import Point, count_down
from .learning import Losses
from .limits import StabilityLimits
from .sample import Sample
from .start import Start

__all__ = ['WATCHED', 'Past', 'Reading', 'headroom', 'read_sample']

# Growth below it is no countdown, as outputs rise when learning begins.
LEAST_GROWN = 256.0
# Of the limit: from here on, samples are taken more densely.
WATCHED = 0.5
LIMIT_OF_SGD = 0.05
LIMIT_OF_ADAPTIVE = 0.02
# Of the limit: watched, but not told of.
JUST_INSIDE = 1 - 1e-9
# Of the limit: updates of such a size count whatever the loss does.
FAR_OVER = 4.0
# Likewise, if the ratio is so many times that of the first samples: the
# learning rate has risen, and the loss may take long to show it.
OVER = 2.0
GROWN_RATIO = 3.0


class Reading(NamedTuple):
    """The answer of a rule to a sample.

    Attributes:
        rule: The name of the rule.
        level: How much of the limit is used up: an alert from 1 on.
        num_needed: Number of samples in a row that have to be over the limit.
        facts: Fields of the alert.
    """

    rule: str
    level: float
    num_needed: int
    facts: Dict[str, Any]


class Past(NamedTuple):
    """The knowledge of the run beside the sample.

    Attributes:
        trends: The last points of each module, the sample's included.
        operands: The last points of the smallest operand of each module.
        losses: The losses of each optimizer, None if too few are known;
            empty if the run keeps none.
        start: The numbers that the run began with.
    """

    trends: Mapping[str, Sequence[Point]]
    operands: Mapping[str, Sequence[Point]]
    losses: Sequence[Optional[Losses]] = ()
    start: Start = Start()


def read_sample(
    sample: Sample, past: Past, limits: StabilityLimits
) -> Dict[str, Reading]:
    """Return the reading of each rule that has something to read.

    Args:
        sample: The sample.
        past: What was seen up to now.
        limits: The limits of the rules.
    """
    readings = (
        headroom(sample, past.trends, limits.headroom),
        update_ratio(sample, past, limits.update_ratio),
        attention_logits(sample, past.start.logits, limits.attention_logits),
        underflow(sample, limits.underflow),
        falling_operand(sample, past.operands, limits.operands),
    )
    return {r.rule: r for r in readings if r is not None}


def headroom(
    sample: Sample,
    trends: Mapping[str, Sequence[Point]],
    limit: Optional[float],
) -> Optional[Reading]:
    """Read the module that will be the first to overflow."""
    if limit is None:
        return None
    worst: Optional[Reading] = None
    soonest = math.inf
    for module, largest in sample.outputs.items():
        # What has overflowed is told by the guard.
        if math.isinf(largest.value):
            continue
        level, left = 0.0, math.inf
        facts = dict(
            module=module,
            value=largest.value,
            limit=largest.limit,
            dtype=largest.dtype,
        )
        # Outputs that a dtype with the range of float32 can hold say nothing
        # by their size.
        if largest.dtype == 'float16':
            facts['advice'] = 'fp32'
            level = 2 ** (limit - largest.bits)
        countdown = None
        # Few modules of a healthy run have such outputs.
        if largest.value >= LEAST_GROWN:
            countdown = count_down(trends[module])
        if countdown is not None:
            level, left = max(level, countdown.level), countdown.left
            facts.update(doubles=countdown.doubles, left=left)
        # Of two that are over, the one with less time, or less room.
        is_worse = worst is None or (
            (min(level, 1), -left, level)
            > (min(worst.level, 1), -soonest, worst.level)
        )
        if is_worse:
            worst, soonest = Reading(HEADROOM, level, 1, facts), left
    return worst


def update_ratio(sample: Sample, past: Past, limit: Any) -> Optional[Reading]:
    """Read the size of the update beside the weights.

    As long as the loss shows no harm and the ratio has not grown, large
    updates are only watched, up to four times the limit: small nets learn
    well with them.
    """
    if limit is None or sample.update_ratio is None:
        return None
    if math.isinf(sample.update_ratio):
        return None
    # The updates of adaptive optimizers have the size of the learning rate
    # from the first one on, whatever the gradients are.
    num_needed = 3 if sample.is_adaptive else 2
    if limit == 'auto':
        limit = LIMIT_OF_ADAPTIVE if sample.is_adaptive else LIMIT_OF_SGD
    module, most = sample.most_moved
    facts = dict(
        module=module,
        value=sample.update_ratio,
        limit=limit,
        most=most,
        advice='lr',
    )
    level = above(sample.update_ratio, limit)
    factor = FAR_OVER
    if sample.update_ratio >= GROWN_RATIO * past.start.ratio:
        facts['first'] = past.start.ratio
        factor = OVER
    for losses in past.losses:
        if losses is not None and losses.is_harmed:
            factor = 1.0
            facts.update(loss=losses.now, first_loss=losses.first)
    if past.losses:
        level = max(level / factor, min(level, JUST_INSIDE))
    return Reading(UPDATE_RATIO, level, num_needed, facts)


def attention_logits(
    sample: Sample, first: Optional[float], limit: Optional[float]
) -> Optional[Reading]:
    """Read the largest argument of a softmax.

    The learning rate has not made what was there before the first update.
    """
    if limit is None or not sample.logits:
        return None
    module = max(sample.logits, key=sample.logits.__getitem__)
    value = sample.logits[module]
    if math.isinf(value):
        return None
    facts = dict(module=module, value=value, limit=limit, first=first)
    if first is None or first < limit:
        facts['advice'] = 'lr'
    return Reading(ATTENTION_LOGITS, value / limit, 1, facts)


def underflow(sample: Sample, limit: Optional[float]) -> Optional[Reading]:
    """Read the largest gradient in float16."""
    grad = sample.scaled_grad
    # Gradients that are all 0 may be those of a loss of 0, unless a loss scale
    # made them smaller.
    if limit is None or grad is None or (grad == 0 and sample.loss_scale >= 1):
        return None
    facts = dict(value=grad, limit=limit, advice='scale')
    level = math.inf
    if grad > 0:
        level = above(limit, grad)
    return Reading(UNDERFLOW, level, 2, facts)


def falling_operand(
    sample: Sample,
    trends: Mapping[str, Sequence[Point]],
    limit: Optional[float],
) -> Optional[Reading]:
    """Read the operand that will be the first to reach 0."""
    if limit is None or not sample.operands:
        return None
    worst = Reading(OPERANDS, 0.0, 1, {})
    for module, (value, op, source) in sample.operands.items():
        if value >= limit:
            continue
        # An operand that stays small is bounded by something. It is watched
        # once, to see whether it falls.
        level, facts = WATCHED, dict(module=module, value=value, limit=limit)
        countdown = count_down(trends[module])
        if countdown is not None:
            level = max(level, countdown.level)
            facts.update(doubles=countdown.doubles, left=countdown.left)
        if level > worst.level:
            facts.update(op=op, source=source)
            worst = Reading(OPERANDS, level, 1, facts)
    return worst


def above(value: float, limit: float) -> float:
    """Return the level of a value whose limit is exclusive."""
    return value / limit * JUST_INSIDE
