"""The guard's scalars in MMEngine's log, and losses that stay finite in it."""

import math
from typing import Dict, List, Mapping

from mmengine.logging import HistoryBuffer, MessageHub

from mmnanguard.numerics.guard_protocol import GuardProtocol

__all__ = ['drop_nonfinite', 'update_scalars']

# MMEngine appends to a log scalar by copying it, so a long scalar is slow:
# https://github.com/open-mmlab/mmengine/blob/v0.10.7/mmengine/logging/history_buffer.py#L76
SCALAR_LENGTH = 1000


def update_scalars(
    hub: MessageHub, guards: Mapping[str, GuardProtocol]
) -> None:
    """Write the counters of all guards under ``train/guard/``."""
    for name, guard in guards.items():
        prefix = 'train/guard/'
        # 'default' is a lone optimizer, which needs no name in the log.
        if name != 'default':
            prefix = f'{prefix}{name}/'
        scalars: Dict[str, float] = {
            'skipped': guard.state.total_skips,
            'routine_overflows': guard.state.routine_overflows,
        }
        # A scalar that can never change would only fill dashboards.
        if guard.policy.accumulation == 'microbatch':
            scalars['left_out'] = guard.state.num_left_out
        if guard.clips_norm:
            scalars['clip_coef'] = guard.last_clip_coef
        factor = guard.state.lr_factor
        # A curve that has begun goes on after the factor is 1 again.
        was_logged = f'{prefix}lr_factor' in hub.log_scalars
        if guard.policy.lr_backoff or factor < 1.0 or was_logged:
            scalars['lr_factor'] = factor
        if guard.scaler.is_enabled():
            scalars['amp_scale'] = guard.scaler.get_scale()
        for key, value in scalars.items():
            hub.update_scalar(prefix + key, value)
            hub.get_scalar(prefix + key).max_length = SCALAR_LENGTH


def drop_nonfinite(hub: MessageHub, keys: List[str]) -> Mapping[str, float]:
    """Remove the newest value of MMEngine's log scalars if it is not finite.

    One NaN would blank the smoothed loss for a whole window of the log. The
    values are host numbers by now, so this does not sync.

    Args:
        hub: The hub that holds the scalars.
        keys: The names of the values that the model returned in this
            iteration.

    Returns:
        The removed values by name.
    """
    dropped = {}
    scalars = hub.log_scalars
    for key in keys:
        buffer = scalars.get(f'train/{key}')
        if buffer is None:
            continue
        values, counts = buffer.data
        if len(values) == 0 or math.isfinite(values[-1]):
            continue
        dropped[key] = values[-1]
        # HistoryBuffer cannot remove a value, so a new buffer replaces it.
        scalars[f'train/{key}'] = HistoryBuffer(
            values[:-1], counts[:-1], buffer.max_length
        )
        # LoggerHook fails on an empty buffer: HistoryBuffer.current raises.
        if len(values) == 1:
            del scalars[f'train/{key}']
    return dropped
