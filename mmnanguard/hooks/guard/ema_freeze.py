"""Averages that ignore rejected updates."""

from typing import Callable, Dict, Iterable, List, Optional

import torch
from mmengine.hooks import Hook
from torch import Tensor, nn

from mmnanguard.numerics.guard_protocol import GuardProtocol

from .._shared.averages import average_of, averaging_hooks
from .._shared.patches import Patches

__all__ = ['EmaFreeze']

# Counters of a guard's state: verdicts so far, and commits among them.
VERDICTS = 'num_updates'
COMMITS = 'num_steps'


class EmaFreeze:
    """Keeps averaged weights as they were before a rejected window.

    ``EMAHook`` and mmdet's ``MeanTeacherHook`` average in each iteration,
    whether the update was committed or rejected. An attached ``EmaFreeze``
    skips the averaging of an iteration in which updates were rejected and
    none was committed.

    With gradient accumulation, it also restores the averages from before the
    rejected window, because they moved in its earlier iterations. This costs
    a copy of the averaged model per window. With several optimizers, the copy
    is from the iteration in which the latest of their windows began.

    Args:
        hooks: The runner's hooks. Their order does not matter, and hooks that
            do not average are ignored.
        guards: The guards whose verdicts decide.
        accumulates: Whether a window can have more than one iteration.
        model: The runner's model, which holds the average of a
            ``MeanTeacherHook``.
    """

    def __init__(
        self,
        hooks: Iterable[Hook] = (),
        guards: Iterable[GuardProtocol] = (),
        accumulates: bool = False,
        model: Optional[nn.Module] = None,
    ) -> None:
        self._hooks = averaging_hooks(hooks)
        self._model = model
        self._guards = list(guards)
        self._accumulates = accumulates
        self._copies: List[Tensor] = []
        self._before: Dict[str, int] = {}

    def attach(self, patches: Patches) -> None:
        """Let the hooks average in committed iterations only."""
        # MMEngine has no hook between an update and EMAHook's averaging, and
        # EMAHook does not ask whether the weights changed:
        # https://github.com/open-mmlab/mmengine/blob/v0.10.7/mmengine/hooks/ema_hook.py#L94
        for hook in self._hooks:
            average = self._unless_rejected(hook.after_train_iter)
            patches.replace(hook, 'after_train_iter', average)

    @torch.no_grad()
    def begin_iter(self) -> None:
        """Prepare for an iteration; no sync."""
        for counter in (VERDICTS, COMMITS):
            self._before[counter] = self._count(counter)
        self._num_left_out = self._count_left_out()
        begins = not all(guard.is_open for guard in self._guards)
        # A window of one iteration needs no copy: skipping its averaging is
        # enough.
        if self._hooks and self._accumulates and begins:
            self._copies = [tensor.clone() for tensor in self._tensors()]

    def _unless_rejected(
        self, average: Callable[..., None]
    ) -> Callable[..., None]:
        """Return a replacement of a hook's averaging that checks verdicts."""

        def after_train_iter(*args: object, **kwargs: object) -> None:
            was_judged = self._has_moved(VERDICTS)
            if was_judged and not self._has_moved(COMMITS):
                self._restore()
            # MMEngine averages within a window too. A micro-batch that was
            # left out, however, must leave no trace in the averages.
            elif was_judged or self._num_left_out == self._count_left_out():
                average(*args, **kwargs)

        return after_train_iter

    def _has_moved(self, counter: str) -> bool:
        return self._count(counter) != self._before.get(counter)

    def _count(self, counter: str) -> int:
        """Sum a counter over all guards."""
        return sum(getattr(guard.state, counter) for guard in self._guards)

    def _count_left_out(self) -> int:
        """Count the micro-batches that all guards have left out so far."""
        return sum(guard.accumulation.num_left_out for guard in self._guards)

    @torch.no_grad()
    def _restore(self) -> None:
        # Without accumulation there are no copies, and none are needed.
        for tensor, copy in zip(self._tensors(), self._copies):
            tensor.copy_(copy)

    def _tensors(self) -> List[Tensor]:
        """Return the parameters and buffers of all averages."""
        tensors = []
        for hook in self._hooks:
            average = average_of(hook, self._model)
            # Buffers too: AveragedModel counts its steps in a buffer, and
            # copies or averages the model's other buffers.
            for tensor in (*average.parameters(), *average.buffers()):
                tensors.append(tensor.detach())
        return tensors
