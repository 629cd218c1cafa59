"""The place of the monitor's mode among those of the user."""

from typing import List

from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode_stack,
    _pop_mode,
    _push_mode,
)
from torch.utils._device import DeviceContext

__all__ = ['insert_mode', 'remove_mode']


def insert_mode(mode: TorchFunctionMode) -> None:
    """Add a mode below those that the user may leave before it is removed.

    PyTorch keeps a default device below all other modes, and asserts it.
    """
    modes = _get_current_function_mode_stack()
    place = 0
    while place < len(modes) and isinstance(modes[place], DeviceContext):
        place += 1
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
