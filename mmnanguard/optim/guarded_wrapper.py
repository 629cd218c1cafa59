from typing import Any

import torch
from torch import Tensor, nn

from .guard import Guard
from .guarded_step import guarded_step

__all__ = ['GuardedWrapper']


class GuardedWrapper:
    """What a guard wants to know of an ``OptimWrapper``, whose part this is.

    Nothing of it is compiled: the guard goes by host numbers, which differ
    with each update.
    """

    guard: Guard

    @torch.compiler.disable
    def open_window(self, model: nn.Module) -> None:
        """A forward pass of ``model`` is next, in its ``optim_context``."""
        self.guard.open(model)

    @torch.compiler.disable
    def update_params(self, *args: Any, **kwargs: Any) -> None:
        super().update_params(*args, **kwargs)  # type: ignore[misc]
        self.guard.accumulation.settle()

    @torch.compiler.disable
    def should_update(self) -> bool:
        """As in MMEngine; where it is True, gradients are all there."""
        is_due: bool = super().should_update()  # type: ignore[misc]
        if is_due:
            self.guard.accumulation.end()
        return is_due

    @torch.compiler.disable
    def zero_grad(self, **kwargs: Any) -> None:
        super().zero_grad(**kwargs)  # type: ignore[misc]
        self.guard.accumulation.drop()

    def should_sync(self) -> bool:
        """Does DDP average the gradients of this backward pass?"""
        if self.guard.accumulation.is_local:
            return False
        return bool(super().should_sync())  # type: ignore[misc]

    @torch.compiler.disable
    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        self.guard.add_loss(loss)
        super().backward(loss, **kwargs)  # type: ignore[misc]

    @torch.compiler.disable
    def step(self, **kwargs: Any) -> None:
        optimizer = self.optimizer  # type: ignore[attr-defined]
        guarded_step(self.guard, optimizer, **kwargs)

    @torch.compiler.disable
    def add_fact(self, name: str, flag: Tensor) -> None:
        """See :meth:`Guard.add_fact`."""
        self.guard.add_fact(name, flag)
