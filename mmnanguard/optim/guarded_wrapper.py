"""The calls of MMEngine's ``OptimWrapper`` that a guard needs to see."""

from contextlib import contextmanager
from typing import Any, Dict, Iterator

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from .guard import Guard
from .guarded_step import guarded_step
from .refusals import refuse_capture

__all__ = ['GuardedWrapper']


class GuardedWrapper(OptimWrapper):
    """An ``OptimWrapper`` that reports its calls to a guard.

    The guard is not compiled, because it decides by host numbers, which
    differ in each update.
    """

    guard: Guard

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Prepare the guard and MMEngine for a forward pass of ``model``."""
        self.open_window(model)
        with super().optim_context(model):
            yield

    @torch.compiler.disable
    def open_window(self, model: nn.Module) -> None:
        """Prepare the guard for a forward pass of ``model``."""
        if is_captured():
            refuse_capture()
        self.guard.open(model)

    @torch.compiler.disable
    def update_params(self, *args: Any, **kwargs: Any) -> None:
        """Update parameters as MMEngine does."""
        super().update_params(*args, **kwargs)
        # The micro-batch ends here, unless a step has ended it already.
        self.guard.window.judge_last()

    @torch.compiler.disable
    def should_update(self) -> bool:
        """Whether a step is due; ``param.grad`` then holds the gradients."""
        is_due: bool = super().should_update()
        # Code between here and step() may look at gradients, such as a
        # user's own clipping.
        window = self.guard.window
        if is_due and not window.has_gradients:
            window.sum_gradients()
        return is_due

    @torch.compiler.disable
    def zero_grad(self, **kwargs: Any) -> None:
        """Set gradients to zero as MMEngine does."""
        super().zero_grad(**kwargs)
        self.guard.drop_gradients()

    def should_sync(self) -> bool:
        """Whether DDP averages the gradients of this backward pass."""
        # Micro-batches that are judged one by one are averaged at the end.
        return not self.guard.accumulation.is_local and super().should_sync()

    @torch.compiler.disable
    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Run backward as MMEngine does, and note the loss."""
        super().backward(loss, **kwargs)
        # Not before: if backward fails, the loss is in no gradient.
        self.guard.add_loss(loss)

    @torch.compiler.disable
    def step(self, **kwargs: Any) -> None:
        """Commit the update of the window, or reject it.

        Raises:
            GuardConfigError: If the step is captured by a CUDA graph.
        """
        if is_captured():
            refuse_capture()
        guarded_step(self.guard, self.optimizer, **kwargs)

    @torch.compiler.disable
    def add_fact(self, name: str, flag: Tensor) -> None:
        """Raise a flag for the present window, see :meth:`Guard.add_fact`."""
        self.guard.add_fact(name, flag)

    def state_dict(self) -> Dict[str, Any]:
        """Return MMEngine's state and the guard's."""
        return {**super().state_dict(), 'guard': self.guard.state_dict()}


def is_captured() -> bool:
    """Whether a CUDA graph is being captured; no sync."""
    # The question alone must not start CUDA in a process without it.
    cuda = torch.cuda
    return cuda.is_initialized() and cuda.is_current_stream_capturing()
