"""The place of the monitor's mode among those of the user."""

from typing import List

import torch
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode_stack,
    _pop_mode,
    _push_mode,
)
from torch.utils._device import DeviceContext

__all__ = ['insert_mode', 'remove_mode']

# Newer versions of PyTorch keep the default device below all other modes, and
# assert it. Older ones remove the uppermost mode, whichever it is.
IS_DEVICE_LOWEST = '_push_mode' in DeviceContext.__enter__.__code__.co_names


def insert_mode(mode: TorchFunctionMode) -> None:
    """Add a mode below all modes that the user may leave before its end."""
    modes = _get_current_function_mode_stack()
    place = 0
    if IS_DEVICE_LOWEST and modes and modes[0] is default_device():
        place = 1
    replace_modes([*modes[:place], mode, *modes[place:]])


def remove_mode(mode: TorchFunctionMode) -> None:
    """Remove a mode, wherever it is; nothing happens if it is not there."""
    modes = _get_current_function_mode_stack()
    if any(other is mode for other in modes):
        replace_modes([other for other in modes if other is not mode])


def replace_modes(modes: List[TorchFunctionMode]) -> None:
    """Replace all modes of this thread, the outermost first."""
    for _ in _get_current_function_mode_stack():
        _pop_mode()
    for mode in modes:
        _push_mode(mode)


def default_device() -> object:
    """Return the mode of ``torch.set_default_device``; None without one."""
    context = getattr(torch, '_GLOBAL_DEVICE_CONTEXT', None)
    return getattr(context, 'device_context', None)
