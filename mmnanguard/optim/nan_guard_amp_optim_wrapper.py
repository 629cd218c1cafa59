"""The guarded form of MMEngine's ``AmpOptimWrapper``."""

import logging
from contextlib import contextmanager
from itertools import chain
from typing import Any, Dict, Iterator, Optional, Union

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn
from torch.optim import Optimizer

from mmnanguard._console import say
from mmnanguard.numerics import GuardedGradScaler
from mmnanguard.registry import OPTIM_WRAPPERS

from .autocast_dtype import choose_dtype
from .clip_grad import mmengines_clip
from .guard import Guard
from .guarded_wrapper import GuardedWrapper

__all__ = ['NanGuardAmpOptimWrapper']

# The first loss scale if 'auto' chooses float16. PyTorch's default of 2**16
# usually overflows several times at first, and each time costs an update.
AUTO_SCALE = 2.0**10


@OPTIM_WRAPPERS.register_module()
class NanGuardAmpOptimWrapper(GuardedWrapper, AmpOptimWrapper):
    """MMEngine's ``AmpOptimWrapper``, guarded.

    It works on a CPU as well.

    Args:
        optimizer: The optimizer, as in MMEngine.
        loss_scale: The loss scale, as in MMEngine or as a dict, see
            :class:`mmnanguard.numerics.GuardedGradScaler`. A number is the
            first scale and the highest one, but the scale can be lowered.
        dtype: The type of autocast, as in MMEngine. 'auto' is bfloat16 where
            the hardware has it, else float16. Only float16 has a scaler.
        use_fsdp: Accepted as in MMEngine, but without effect, because all
            ranks reach one verdict with any scaler.
        accumulative_counts: Number of micro-batches per update, as in
            MMEngine. They are committed or rejected together, unless
            ``guard`` has ``accumulation='microbatch'``.
        clip_grad: A clip of MMEngine or of mmnanguard, see
            docs/en/clipping.md. Gradients are observed before clipping.
        guard: The rules, see :class:`mmnanguard.core.GuardPolicy`.

    Attributes:
        loss_scaler: A ``torch.amp.GradScaler``, disabled without float16.

    Raises:
        GuardConfigError: If an argument cannot work.
    """

    # In MMEngine this is one of three scalers, without an annotation.
    loss_scaler: GuardedGradScaler  # type: ignore[assignment]

    def __init__(
        self,
        optimizer: Optimizer,
        loss_scale: Union[str, float, Dict[str, Any]] = 'dynamic',
        dtype: Union[str, torch.dtype, None] = None,
        use_fsdp: bool = False,
        accumulative_counts: int = 1,
        clip_grad: Optional[Dict[str, Any]] = None,
        guard: Optional[Dict[str, Any]] = None,
    ) -> None:
        # All parameters of an optimizer are on devices of one type. A group
        # may be empty.
        groups = (group['params'] for group in optimizer.param_groups)
        first = next(chain.from_iterable(groups))
        self._device = first.device.type
        self.cast_dtype = choose_dtype(dtype, self._device, first.dtype)
        is_scaled = self.cast_dtype is torch.float16
        if dtype == 'auto':
            if is_scaled and loss_scale == 'dynamic':
                loss_scale = dict(init_scale=AUTO_SCALE)
            say(f"dtype='auto' chose {self.cast_dtype} on this {self._device}")
        # Without float16 this only checks the argument.
        self.loss_scaler = GuardedGradScaler.from_config(
            loss_scale, self._device
        )
        if not is_scaled:
            if loss_scale != 'dynamic':
                say(
                    f'optim_wrapper.loss_scale={loss_scale!r} has no effect '
                    f'under {self.cast_dtype}: only float16 needs a scale',
                    logging.WARNING,
                )
            self.loss_scaler = GuardedGradScaler(enabled=False)
        self.guard = Guard(optimizer, guard, clip_grad, self.loss_scaler)
        # AmpOptimWrapper.__init__ refuses a CPU and builds a scaler that
        # needs CUDA, even for bfloat16.
        OptimWrapper.__init__(
            self, optimizer, accumulative_counts, mmengines_clip(clip_grad)
        )
        self.guard.adopt_clip(self)
        self._scale_update_param = None

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Prepare the guard and autocast for a forward pass of ``model``."""
        self.open_window(model)
        # MMEngine's own autocast does not know float16 on a CPU.
        with OptimWrapper.optim_context(self, model), torch.autocast(
            self._device, dtype=self.cast_dtype
        ):
            yield

    def state_dict(self) -> Dict[str, Any]:
        """Return MMEngine's state and the guard's."""
        state_dict = OptimWrapper.state_dict(self)
        if self.loss_scaler.is_enabled():
            # MMEngine cannot load a disabled scaler's empty state.
            state_dict['loss_scaler'] = self.loss_scaler.state_dict()
        return {**state_dict, 'guard': self.guard.state_dict()}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Load the state of a guarded, plain or AMP wrapper.

        The checkpoint sets the current loss scale, the config its factors
        and bounds. ``state_dict`` is not changed.
        """
        state_dict = dict(state_dict)
        self.guard.load_state_dict(state_dict.pop('guard', {}))
        self.loss_scaler.load_state_dict(state_dict.pop('loss_scaler', {}))
        OptimWrapper.load_state_dict(self, state_dict)
