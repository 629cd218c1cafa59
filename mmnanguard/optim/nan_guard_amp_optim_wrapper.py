import logging
from contextlib import contextmanager
from typing import Any, Iterator, Optional, Union

import torch
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor, nn
from torch.optim import Optimizer

from mmnanguard.numerics import GuardedGradScaler
from mmnanguard.registry import OPTIM_WRAPPERS

from .autocast_dtype import choose_dtype
from .clip_grad import mmengines_clip
from .guard import Guard
from .guarded_step import guarded_step

__all__ = ['NanGuardAmpOptimWrapper']

# Where 'auto' has to take float16, it starts low: each of the usual first
# overflows from 2**16 costs an update.
AUTO_SCALE = 2.0**10


@OPTIM_WRAPPERS.register_module()
class NanGuardAmpOptimWrapper(AmpOptimWrapper):
    """MMEngine's ``AmpOptimWrapper``, with updates that commit or leave no
    trace, and on a CPU as well.

    Args:
        optimizer: As in MMEngine.
        loss_scale: As in MMEngine, and more, see
            :class:`mmnanguard.numerics.GuardedGradScaler`: a number is where
            the scale starts and what it never passes, but it can be lowered.
        dtype: As in MMEngine, and 'auto': bfloat16 where the hardware has
            it, else float16. Only float16 has a scaler.
        use_fsdp: As in MMEngine, and without effect: all ranks reach one
            verdict with any scaler.
        accumulative_counts: As in MMEngine; the window is the transaction.
        clip_grad: As in MMEngine, or one of mmnanguard's, as in
            docs/clipping.md. Gradients are observed before it.
        guard: The rules, see :class:`mmnanguard.core.GuardPolicy`.

    Attributes:
        loss_scaler: A ``torch.amp.GradScaler``, disabled without float16.

    Raises:
        GuardConfigError: If an argument cannot work.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        loss_scale: Union[str, float, dict] = 'dynamic',
        dtype: Union[str, torch.dtype, None] = None,
        use_fsdp: bool = False,
        accumulative_counts: int = 1,
        clip_grad: Optional[dict] = None,
        guard: Optional[dict] = None,
    ) -> None:
        params = [p for g in optimizer.param_groups for p in g['params']]
        self._device = params[0].device.type
        self.cast_dtype = choose_dtype(dtype, self._device)
        is_scaled = self.cast_dtype is torch.float16
        if dtype == 'auto':
            if is_scaled and loss_scale == 'dynamic':
                loss_scale = dict(init_scale=AUTO_SCALE)
            print_log(
                f"dtype='auto' chose {self.cast_dtype} on this {self._device}",
                logger='current',
            )
        # Also checks a loss_scale that will not be used.
        self.loss_scaler = GuardedGradScaler.from_config(
            loss_scale, self._device
        )
        if not is_scaled:
            if loss_scale != 'dynamic':
                print_log(
                    f'optim_wrapper.loss_scale={loss_scale!r} has no effect '
                    f'under {self.cast_dtype}: only float16 needs a scale',
                    logger='current',
                    level=logging.WARNING,
                )
            self.loss_scaler = GuardedGradScaler(enabled=False)
        self.guard = Guard(optimizer, guard, clip_grad, self.loss_scaler)
        # Not AmpOptimWrapper's: it refuses a CPU and builds a scaler that
        # needs CUDA, even for bfloat16.
        OptimWrapper.__init__(
            self, optimizer, accumulative_counts, mmengines_clip(clip_grad)
        )
        self.guard.adopt_clip(self)
        self._scale_update_param = None

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
        # Not AmpOptimWrapper's: MMEngine's autocast knows no float16 on a CPU.
        with OptimWrapper.optim_context(self, model), torch.autocast(
            self._device, dtype=self.cast_dtype
        ):
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
        state_dict = OptimWrapper.state_dict(self)
        if self.loss_scaler.is_enabled():
            # MMEngine cannot load a disabled scaler's empty state.
            state_dict['loss_scaler'] = self.loss_scaler.state_dict()
        return {**state_dict, 'guard': self.guard.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Also takes a plain or AMP wrapper's state; leaves it as it is.

        The checkpoint sets the current loss scale, the config its policy.
        """
        state_dict = dict(state_dict)
        self.guard.load_state_dict(state_dict.pop('guard', {}))
        self.loss_scaler.load_state_dict(state_dict.pop('loss_scaler', {}))
        OptimWrapper.load_state_dict(self, state_dict)
