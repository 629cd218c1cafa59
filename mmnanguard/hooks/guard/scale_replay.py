"""The correction of a loss scale by the replay of a rejected update."""

import logging
import math
from dataclasses import replace

from mmengine.runner import Runner

from mmnanguard._console import say
from mmnanguard.core import GuardEvent
from mmnanguard.core.rows.autopsy import GRADS
from mmnanguard.numerics.guard_protocol import GuardProtocol

from .._shared.hook_arguments import Row

__all__ = ['correct_scale']


def correct_scale(
    runner: Runner, guard: GuardProtocol, event: GuardEvent, row: Row
) -> None:
    """Correct the scale if an autopsy has tried a lower one; no sync.

    All ranks have the same row, so their scales stay equal.

    Args:
        runner: The runner, whose log shows the correction.
        guard: The guard that has just rejected an update.
        event: The event of that update.
        row: The row of an autopsy.
    """
    trial, kind, cure = guard.state.scale_trial, 'nan', 'lower_scale'
    if not math.isfinite(event.loss):
        kind, cure = 'loss', GRADS
    elif trial.has_inf:
        kind = 'inf'
    is_overflow = row.get('tried', {}).get(cure)
    # A fault that does not happen again shows nothing.
    if is_overflow is None or not row['repeats'] or row['id'] != event.id:
        return
    scaler = guard.scaler
    # Without a bad update, another cause has rejected it, or it was committed.
    if event.loss_scale is None or (kind != 'loss' and trial.num_bad == 0):
        return
    reading = scaler.read()
    trial, value = trial.corrected(
        kind, reading, event.loss_scale['before'], is_overflow
    )
    guard.state = replace(guard.state, scale_trial=trial)
    scaler.jump(value)
    # That a bad loss is not of the scale is no news.
    if kind == 'loss' and not is_overflow and value == reading.value:
        return
    finding = 'is finite, so the gradients overflowed'
    if not is_overflow:
        finding = 'is not finite either, so the scale is not the cause'
    elif kind == 'loss':
        finding = 'has finite gradients, so they overflowed beside the loss'
    say(
        f'Iter {event.iter}: a replay at a lower loss scale {finding}; loss '
        f'scale {reading.value:g} -> {scaler.get_scale():g}',
        logging.WARNING,
        runner.logger,
    )
