from contextlib import contextmanager
from typing import Any, Iterator, Optional

from torch import nn
from torch.optim import Optimizer

from mmnanguard.core import GuardConfigError
from mmnanguard.core.checks import check_keys
from mmnanguard.registry import OPTIM_WRAPPERS

from .clip_grad import mmengines_clip
from .guard import Guard
from .guarded_wrapper import GuardedWrapper

__all__ = ['NanGuardOptimWrapper']

KEYS = ('optimizer', 'accumulative_counts', 'clip_grad', 'guard')
OF_AMP = ('loss_scale', 'dtype', 'use_fsdp')


@OPTIM_WRAPPERS.register_module()
class NanGuardOptimWrapper(GuardedWrapper):
    """MMEngine's ``OptimWrapper``, with updates that commit or leave no trace.

    Args:
        optimizer: As in MMEngine.
        accumulative_counts: As in MMEngine; the window is the transaction.
        clip_grad: As in MMEngine, or one of mmnanguard's, as in
            docs/en/clipping.md. Gradients are observed before it.
        guard: The rules, see :class:`mmnanguard.core.GuardPolicy`.

    Raises:
        GuardConfigError: If ``clip_grad`` or ``guard`` cannot work, or for
            any other key.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        accumulative_counts: int = 1,
        clip_grad: Optional[dict] = None,
        guard: Optional[dict] = None,
        **others: Any,
    ) -> None:
        for key in set(others).intersection(OF_AMP):
            raise GuardConfigError(
                f'optim_wrapper.{key} is of mixed precision, and '
                'NanGuardOptimWrapper has none: take '
                "type='mmnanguard.NanGuardAmpOptimWrapper', or leave the key "
                'out. A base config may have set it, or --amp.'
            )
        check_keys(others, KEYS, 'optim_wrapper')
        # Before super, for its better errors.
        self.guard = Guard(optimizer, guard, clip_grad)
        super().__init__(
            optimizer, accumulative_counts, mmengines_clip(clip_grad)
        )
        self.guard.adopt_clip(self)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        self.open_window(model)
        with super().optim_context(model):
            yield

    def state_dict(self) -> dict:
        return {**super().state_dict(), 'guard': self.guard.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Also takes a plain or AMP wrapper's state; leaves it as it is."""
        state_dict = dict(state_dict)
        self.guard.load_state_dict(state_dict.pop('guard', {}))
        state_dict.pop('loss_scaler', None)
        super().load_state_dict(state_dict)
