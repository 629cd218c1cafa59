from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from .guard import Guard
from .guarded_step import guarded_step

__all__ = ['GuardedWrapper']


class GuardedWrapper(OptimWrapper):
    """Tells a guard what it wants to know of an ``OptimWrapper``.

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
        super().update_params(*args, **kwargs)
        self.guard.accumulation.judge_last()

    @torch.compiler.disable
    def should_update(self) -> bool:
        """As in MMEngine; where it is True, gradients are all there."""
        is_due = super().should_update()
        if is_due:
            self.guard.accumulation.end()
        return is_due

    @torch.compiler.disable
    def zero_grad(self, **kwargs: Any) -> None:
        super().zero_grad(**kwargs)
        self.guard.accumulation.drop()

    def should_sync(self) -> bool:
        """Does DDP average the gradients of this backward pass?"""
        return not self.guard.accumulation.is_local and super().should_sync()

    @torch.compiler.disable
    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        self.guard.add_loss(loss)
        super().backward(loss, **kwargs)

    @torch.compiler.disable
    def step(self, **kwargs: Any) -> None:
        guarded_step(self.guard, self.optimizer, **kwargs)

    @torch.compiler.disable
    def add_fact(self, name: str, flag: Tensor) -> None:
        """See :meth:`Guard.add_fact`."""
        self.guard.add_fact(name, flag)
