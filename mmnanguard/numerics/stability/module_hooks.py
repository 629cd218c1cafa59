"""Hooks on all modules of the process, which no module knows of.

Hooks of a module are copied and pickled with it, and PyTorch looks whether
there are any before it takes a fused kernel, scripts or captures a module.
"""

from typing import Any, List, Protocol, Tuple

import torch
from torch import nn
from torch.nn.modules import module as registry

__all__ = ['ModuleListener', 'listen', 'stop_listening']

# Dynamo compiles anew if another key or function is in the registry.
KEY = -1
is_compiling = getattr(torch.compiler, 'is_compiling', bool)


class ModuleListener(Protocol):
    """A listener to the forward passes of modules; it must not raise."""

    def before_module(self, module: nn.Module) -> None:
        """Listen to the beginning of a forward pass."""

    def after_module(self, module: nn.Module, outputs: object) -> None:
        """Listen to the end of a forward pass.

        The outputs are None if it has failed with an Exception. It has no end
        if it was interrupted.
        """


_listeners: List[ModuleListener] = []


def listen(listener: ModuleListener) -> None:
    """Call a listener for each forward pass, of whatever module."""
    _listeners.append(listener)
    registry._global_forward_pre_hooks[KEY] = before_forward
    registry._global_forward_hooks[KEY] = after_forward
    registry._global_forward_hooks_always_called[KEY] = True


def stop_listening(listener: ModuleListener) -> None:
    """Call a listener no more; the last one removes the hooks."""
    if listener in _listeners:
        _listeners.remove(listener)
    if not _listeners:
        registry._global_forward_pre_hooks.pop(KEY, None)
        registry._global_forward_hooks.pop(KEY, None)
        registry._global_forward_hooks_always_called.pop(KEY, None)


def before_forward(module: nn.Module, args: Tuple[Any, ...]) -> None:
    """Call the listeners before a forward pass, unless it is compiled."""
    # First, so that Dynamo makes the same code as without a hook.
    if is_compiling():
        return
    for listener in tuple(_listeners):
        listener.before_module(module)


def after_forward(
    module: nn.Module, args: Tuple[Any, ...], outputs: object
) -> None:
    """Call the listeners after a forward pass, unless it is compiled."""
    if is_compiling():
        return
    for listener in tuple(_listeners):
        listener.after_module(module, outputs)
