from contextlib import contextmanager
from typing import Any, Iterator, Optional

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.optim import Optimizer

from mmnanguard.registry import OPTIM_WRAPPERS

from .clip_grad import mmengines_clip
from .guard import Guard
from .guarded_step import guarded_step

__all__ = ['NanGuardOptimWrapper']


@OPTIM_WRAPPERS.register_module()
class NanGuardOptimWrapper(OptimWrapper):
    """MMEngine's ``OptimWrapper``, with updates that commit or leave no trace.

    Args:
        optimizer: As in MMEngine.
        accumulative_counts: As in MMEngine; the window is the transaction.
        clip_grad: As in MMEngine, or one of mmnanguard's, as in
            docs/clipping.md. Gradients are observed before it.
        guard: The rules, see :class:`mmnanguard.core.GuardPolicy`.

    Raises:
        GuardConfigError: If ``clip_grad`` or ``guard`` cannot work.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        accumulative_counts: int = 1,
        clip_grad: Optional[dict] = None,
        guard: Optional[dict] = None,
    ) -> None:
        # Before super, for its better errors.
        self.guard = Guard(optimizer, guard, clip_grad)
        super().__init__(
            optimizer, accumulative_counts, mmengines_clip(clip_grad)
        )
        self.guard.adopt_clip(self)

    # Nothing of the guard is compiled: it goes by host numbers, which differ
    # with each update.
    @torch.compiler.disable
    def update_params(self, *args: Any, **kwargs: Any) -> None:
        super().update_params(*args, **kwargs)
        self.guard.accumulation.settle()

    @torch.compiler.disable
    def _open(self, model: nn.Module) -> None:
        self.guard.open(model)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        self._open(model)
        with super().optim_context(model):
            yield

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

    def state_dict(self) -> dict:
        return {**super().state_dict(), 'guard': self.guard.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Also takes a plain or AMP wrapper's state; leaves it as it is."""
        state_dict = dict(state_dict)
        self.guard.load_state_dict(state_dict.pop('guard', {}))
        state_dict.pop('loss_scaler', None)
        super().load_state_dict(state_dict)
