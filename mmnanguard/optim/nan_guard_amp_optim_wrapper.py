import logging
from contextlib import contextmanager
from typing import Iterator, Optional, Union

import torch
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn
from torch.optim import Optimizer

from mmnanguard.numerics import GuardedGradScaler
from mmnanguard.registry import OPTIM_WRAPPERS

from .autocast_dtype import choose_dtype
from .clip_grad import mmengines_clip
from .guard import Guard
from .guarded_wrapper import GuardedWrapper

__all__ = ['NanGuardAmpOptimWrapper']

# Where 'auto' has to take float16, it starts low: each of the usual first
# overflows from 2**16 costs an update.
AUTO_SCALE = 2.0**10


@OPTIM_WRAPPERS.register_module()
class NanGuardAmpOptimWrapper(GuardedWrapper, AmpOptimWrapper):
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
            docs/en/clipping.md. Gradients are observed before it.
        guard: The rules, see :class:`mmnanguard.core.GuardPolicy`.

    Attributes:
        loss_scaler: A ``torch.amp.GradScaler``, disabled without float16.

    Raises:
        GuardConfigError: If an argument cannot work.
    """

    # MMEngine's own is one of three scalers and has no annotation.
    loss_scaler: GuardedGradScaler  # type: ignore[assignment]

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

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        self.open_window(model)
        # Not AmpOptimWrapper's: MMEngine's autocast knows no float16 on a CPU.
        with OptimWrapper.optim_context(self, model), torch.autocast(
            self._device, dtype=self.cast_dtype
        ):
            yield

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
