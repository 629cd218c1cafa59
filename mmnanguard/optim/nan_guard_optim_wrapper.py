"""The guarded form of MMEngine's ``OptimWrapper``."""

from typing import Any, Dict, Optional

from torch.optim import Optimizer

from mmnanguard.core import GuardConfigError
from mmnanguard.core.checks import check_keys
from mmnanguard.registry import OPTIM_WRAPPERS

from .clip_grad import mmengines_clip
from .guard import Guard
from .guarded_wrapper import GuardedWrapper

__all__ = ['NanGuardOptimWrapper']

KEYS = ('optimizer', 'accumulative_counts', 'clip_grad', 'guard')
AMP_KEYS = ('loss_scale', 'dtype', 'use_fsdp')


@OPTIM_WRAPPERS.register_module()
class NanGuardOptimWrapper(GuardedWrapper):
    """MMEngine's ``OptimWrapper``, with updates that commit or leave no trace.

    Args:
        optimizer: The optimizer, as in MMEngine.
        accumulative_counts: Number of micro-batches per update, as in
            MMEngine. They are committed or rejected together, unless
            ``guard`` has ``accumulation='microbatch'``.
        clip_grad: A clip of MMEngine or of mmnanguard, see
            docs/en/clipping.md. Gradients are observed before clipping.
        guard: The rules, see :class:`mmnanguard.core.GuardPolicy`.

    Raises:
        GuardConfigError: If ``clip_grad`` or ``guard`` cannot work, or for
            any other key.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        accumulative_counts: int = 1,
        clip_grad: Optional[Dict[str, Any]] = None,
        guard: Optional[Dict[str, Any]] = None,
        **others: Any,
    ) -> None:
        for key in set(others).intersection(AMP_KEYS):
            raise GuardConfigError(
                f'optim_wrapper.{key} is of mixed precision, and '
                'NanGuardOptimWrapper has none: take '
                "type='mmnanguard.NanGuardAmpOptimWrapper', or leave the key "
                'out. A base config may have set it, or --amp.'
            )
        check_keys(others, KEYS, 'optim_wrapper')
        # Before super().__init__, because these errors are more precise.
        self.guard = Guard(optimizer, guard, clip_grad)
        super().__init__(
            optimizer, accumulative_counts, mmengines_clip(clip_grad)
        )
        self.guard.adopt_clip(self)

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Load the state of a guarded, plain or AMP wrapper.

        ``state_dict`` is not changed.
        """
        state_dict = dict(state_dict)
        self.guard.load_state_dict(state_dict.pop('guard', {}))
        state_dict.pop('loss_scaler', None)
        super().load_state_dict(state_dict)
