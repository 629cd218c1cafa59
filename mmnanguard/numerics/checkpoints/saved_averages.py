"""The averaged weights in a checkpoint that ``EMAHook`` has changed.

Before MMEngine saves, ``EMAHook._swap_ema_state_dict`` exchanges the averages
and the trained weights: 'state_dict' then holds the averages, so that a test
loads them, and 'ema_state_dict' holds the trained weights, under the names of
the averaged model, whose parameters begin with 'module.'.
"""

from typing import Any, Dict, Mapping, Optional, Tuple

__all__ = ['EMA_KEY', 'source_of', 'trained_and_averaged']

EMA_KEY = 'ema_state_dict'
PREFIX = 'module.'


def source_of(name: str) -> Optional[str]:
    """Return the name of the tensor that an averaged one is the average of.

    None for what the averaged model has besides, such as its step counter.
    """
    return name[len(PREFIX) :] if name.startswith(PREFIX) else None


def trained_and_averaged(
    state: Mapping[str, Any], ema_state: Mapping[str, Any]
) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Return the trained and the averaged model's state, exchanged back.

    Args:
        state: A checkpoint's 'state_dict'.
        ema_state: Its 'ema_state_dict'; empty without an ``EMAHook``.
    """
    trained, averaged = dict(state), dict(ema_state)
    for name in ema_state:
        source = source_of(name)
        if source is not None and source in state:
            trained[source], averaged[name] = ema_state[name], state[source]
    return trained, averaged
