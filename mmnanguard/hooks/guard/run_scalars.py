import math
from typing import Dict, List, Mapping

from mmengine.logging import HistoryBuffer, MessageHub

from mmnanguard.numerics.guard_protocol import GuardProtocol

__all__ = ['drop_nonfinite', 'update_scalars']

# MMEngine appends to a log scalar by copying it, so the guard's are short.
SCALAR_LENGTH = 1000


def update_scalars(
    hub: MessageHub, guards: Mapping[str, GuardProtocol]
) -> None:
    """Write each guard's counters under ``train/guard/``."""
    for name, guard in guards.items():
        prefix = 'train/guard/' + ('' if name == 'default' else f'{name}/')
        scalars: Dict[str, float] = {
            'skipped': guard.state.total_skips,
            'routine_overflows': guard.state.routine_overflows,
        }
        if guard.policy.accumulation == 'microbatch':
            scalars['left_out'] = guard.state.num_left_out
        if guard.clips_norm:
            scalars['clip_coef'] = guard.last_clip_coef
        factor = guard.state.lr_factor
        was_told = f'{prefix}lr_factor' in hub.log_scalars  # it has recovered
        if guard.policy.lr_backoff or factor < 1.0 or was_told:
            scalars['lr_factor'] = factor
        if guard.scaler.is_enabled():
            scalars['amp_scale'] = guard.scaler.get_scale()
        for key, value in scalars.items():
            hub.update_scalar(prefix + key, value)
            hub.get_scalar(prefix + key).max_length = SCALAR_LENGTH


def drop_nonfinite(hub: MessageHub, keys: List[str]) -> Mapping[str, float]:
    """Take the newest value back out of MMEngine's smoothed scalars if it is
    not finite. They are host numbers by now: no sync.

    Args:
        hub: Holds the scalars.
        keys: What the model returned in this iteration.

    Returns:
        What was taken out.
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
        scalars[f'train/{key}'] = HistoryBuffer(
            values[:-1], counts[:-1], buffer.max_length
        )
        if len(values) == 1:  # an empty buffer cannot be logged
            del scalars[f'train/{key}']
    return dropped
