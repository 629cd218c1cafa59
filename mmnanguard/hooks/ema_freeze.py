from typing import Any, Iterable, List

import torch
from mmengine.hooks import EMAHook
from torch import Tensor, nn

__all__ = ['EmaFreeze']


class EmaFreeze:
    """Keeps averaged weights as they were before a rejected window.

    ``EMAHook`` averages in each iteration, whatever became of the update. In
    the iteration of a rejection it is passed over; with gradient
    accumulation the averages of the window's earlier iterations are undone
    from a copy, which costs one copy of the averaged model a window.

    Args:
        hooks: Of the runner; those that are an ``EMAHook`` count.
    """

    def __init__(self, hooks: Iterable[Any] = ()) -> None:
        self._hooks = [hook for hook in hooks if isinstance(hook, EMAHook)]
        self._copies: List[Tensor] = []

    @torch.no_grad()
    def begin_window(self) -> None:
        """Remember the averages as they are now; no sync."""
        self._copies = [
            tensor.detach().clone()
            for hook in self._hooks
            for tensor in tensors_of(hook.ema_model)
        ]

    @torch.no_grad()
    def reject_window(self) -> None:
        """Must come before ``EMAHook`` in the same iteration; no sync."""
        if self._copies:
            tensors = [
                tensor
                for hook in self._hooks
                for tensor in tensors_of(hook.ema_model)
            ]
            for tensor, copy in zip(tensors, self._copies):
                tensor.copy_(copy)
        for hook in self._hooks:
            pass_over(hook)


def tensors_of(model: nn.Module) -> List[Tensor]:
    return [*model.parameters(), *model.buffers()]


def pass_over(hook: EMAHook) -> None:
    """Let the next ``after_train_iter`` do nothing, and only that one."""

    def nothing(*_: Any, **__: Any) -> None:
        del hook.after_train_iter  # the class's own comes forth again

    hook.after_train_iter = nothing
