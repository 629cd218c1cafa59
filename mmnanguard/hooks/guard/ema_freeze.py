"""Averages that ignore rejected updates."""

from typing import Any, Callable, Dict, Iterable, List, Optional

import torch
from torch import Tensor, nn

from mmnanguard.numerics.guard_protocol import GuardProtocol

from .._shared.averages import average_of, averaging_hooks
from .._shared.patches import Patches

__all__ = ['EmaFreeze']


class EmaFreeze:
    """Keeps averaged weights as they were before a rejected window.

    ``EMAHook`` and mmdet's ``MeanTeacherHook`` average in each iteration,
    whatever became of the update. In one in which updates were rejected and
    none was committed they are passed over; with gradient accumulation the
    averages of the window's earlier iterations are undone from a copy, which
    costs one copy of the averaged model a window. With several optimizers
    that is the copy of the iteration in which the latest of their windows
    began.

    Args:
        hooks: Of the runner; those that average count, wherever they stand
            among the others.
        guards: Whose updates are looked at.
        accumulates: A window can have more than one iteration.
        model: The runner's, in which a ``MeanTeacherHook`` has its average.
    """

    def __init__(
        self,
        hooks: Iterable[Any] = (),
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
        for hook in self._hooks:
            average = self._unless_rejected(hook.after_train_iter)
            patches.replace(hook, 'after_train_iter', average)

    @torch.no_grad()
    def begin_iter(self) -> None:
        """Prepare for an iteration; no sync."""
        self._before = {
            name: self._count(name) for name in ('num_updates', 'num_steps')
        }
        self._num_left_out = self._count_left_out()
        begins = any(not guard.is_open for guard in self._guards)
        if self._hooks and self._accumulates and begins:
            self._copies = [tensor.clone() for tensor in self._tensors()]

    def _unless_rejected(
        self, average: Callable[..., None]
    ) -> Callable[..., None]:
        def after_train_iter(*args: object, **kwargs: object) -> None:
            was_judged = self._has_moved('num_updates')
            if was_judged and not self._has_moved('num_steps'):
                self._put_back()
            elif was_judged or self._num_left_out == self._count_left_out():
                average(*args, **kwargs)

        return after_train_iter

    def _has_moved(self, counter: str) -> bool:
        return self._count(counter) != self._before.get(counter)

    def _count(self, counter: str) -> int:
        return sum(getattr(guard.state, counter) for guard in self._guards)

    def _count_left_out(self) -> int:
        """Micro-batches that are as if they had never been."""
        return sum(guard.accumulation.num_left_out for guard in self._guards)

    @torch.no_grad()
    def _put_back(self) -> None:
        for tensor, copy in zip(self._tensors(), self._copies):
            tensor.copy_(copy)

    def _tensors(self) -> List[Tensor]:
        tensors: List[Tensor] = []
        for hook in self._hooks:
            average = average_of(hook, self._model)
            tensors += [*average.parameters(), *average.buffers()]
        return [tensor.detach() for tensor in tensors]
