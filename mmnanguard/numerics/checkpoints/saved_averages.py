"""The averaged weights in a checkpoint that ``EMAHook`` has changed.

Before MMEngine saves, ``EMAHook._swap_ema_state_dict`` exchanges the averages
and the trained weights: 'state_dict' then holds the averages, so that a test
loads them. 'ema_state_dict' holds the trained weights under the names of the
averaged model, in which the names of parameters begin with 'module.'.
"""

from typing import Dict, Mapping, Optional, Tuple, TypeVar

__all__ = ['EMA_KEY', 'source_of', 'trained_and_averaged']

EMA_KEY = 'ema_state_dict'
# AveragedModel of PyTorch and BaseAveragedModel of MMEngine keep the model
# under this attribute.
PREFIX = 'module.'

Value = TypeVar('Value')


def source_of(name: str) -> Optional[str]:
    """Return the name of the tensor that an average was made from.

    Args:
        name: The name of a tensor of the averaged model.

    Returns:
        The name in the trained model; None for tensors that only the averaged
        model has, such as its step counter.
    """
    return name[len(PREFIX) :] if name.startswith(PREFIX) else None


def trained_and_averaged(
    state: Mapping[str, Value], ema_state: Mapping[str, Value]
) -> Tuple[Dict[str, Value], Dict[str, Value]]:
    """Return the trained and the averaged model's state, exchanged back.

    Args:
        state: A checkpoint's 'state_dict'.
        ema_state: The checkpoint's 'ema_state_dict'; empty without an
            ``EMAHook``.
    """
    trained, averaged = dict(state), dict(ema_state)
    for name in ema_state:
        source = source_of(name)
        # A file from which another tool removed tensors may lack the source.
        if source is not None and source in state:
            trained[source], averaged[name] = ema_state[name], state[source]
    return trained, averaged
