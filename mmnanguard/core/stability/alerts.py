"""The alert of a rule, and whether it is told once more."""

from ..rows.alert_row import HEADROOM, OPERANDS, UNDERFLOW, AlertRow
from ..rows.remedy_row import line_of_fp32
from .loss_scales import fitting_scale
from .rules import Reading
from .sample import Sample

__all__ = ['alert_of', 'is_news']

# An alert is told again once its number has grown.
TOLD_AGAIN = 4.0


def alert_of(reading: Reading, sample: Sample) -> AlertRow:
    """Return the alert of a rule that is over its limit."""
    alert = AlertRow(
        iter=sample.iter,
        rule=reading.rule,
        loss_scale=sample.loss_scale,
        lr=sample.lr,
        **reading.facts,
    )
    if alert.rule == HEADROOM and alert.advice:
        alert = alert.replace(config=line_of_fp32([alert.module]))
    if alert.rule == UNDERFLOW:
        scale = "'dynamic'"
        if alert.value > 0:
            scale = f'{fitting_scale(alert.value / alert.loss_scale):g}'
        alert = alert.replace(config=f'optim_wrapper=dict(loss_scale={scale})')
    return alert


def is_news(alert: AlertRow, before: AlertRow) -> bool:
    """Whether an alert says more than the open one of its rule."""
    # An operand that nothing holds falls by orders from sample to sample.
    if alert.rule == OPERANDS:
        return False
    if alert.rule == UNDERFLOW:
        return alert.value * TOLD_AGAIN < before.value
    return alert.value >= TOLD_AGAIN * before.value
