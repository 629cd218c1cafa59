from typing import Any, Callable, Dict, Iterable, List

import torch
from mmengine.hooks import EMAHook
from torch import Tensor

__all__ = ['EmaFreeze']


class EmaFreeze:
    """Keeps averaged weights as they were before a rejected window.

    ``EMAHook`` averages in each iteration, whatever became of the update. In
    one in which updates were rejected and none was committed it is passed
    over; with gradient accumulation the averages of the window's earlier
    iterations are undone from a copy, which costs one copy of the averaged
    model a window. With several optimizers that is the copy of the
    iteration in which the latest of their windows began.

    Args:
        hooks: Of the runner; those that are an ``EMAHook`` count, wherever
            they stand among the others.
        guards: Whose updates are looked at.
        accumulates: A window can have more than one iteration.
    """

    def __init__(
        self,
        hooks: Iterable[Any] = (),
        guards: Iterable[Any] = (),
        accumulates: bool = False,
    ) -> None:
        self._hooks = [hook for hook in hooks if isinstance(hook, EMAHook)]
        self._guards = list(guards)
        self._accumulates = accumulates
        self._copies: List[Tensor] = []
        self._before: Dict[str, int] = {}
        for hook in self._hooks:
            hook.after_train_iter = self._unless_rejected(
                hook.after_train_iter
            )

    def detach(self) -> None:
        """Give the hooks their own method back."""
        for hook in self._hooks:
            del hook.after_train_iter

    @torch.no_grad()
    def begin_iter(self) -> None:
        """Before an iteration; no sync."""
        self._before = {
            name: self._count(name) for name in ('num_updates', 'num_steps')
        }
        begins = any(not guard.losses for guard in self._guards)
        if self._hooks and self._accumulates and begins:
            self._copies = [tensor.clone() for tensor in self._tensors()]

    def _unless_rejected(self, average: Callable[..., None]) -> Callable:
        def after_train_iter(*args: Any, **kwargs: Any) -> None:
            was_judged = self._has_moved('num_updates')
            if was_judged and not self._has_moved('num_steps'):
                self._put_back()
            else:
                average(*args, **kwargs)

        return after_train_iter

    def _has_moved(self, counter: str) -> bool:
        return self._count(counter) != self._before.get(counter)

    def _count(self, counter: str) -> int:
        return sum(getattr(guard.state, counter) for guard in self._guards)

    @torch.no_grad()
    def _put_back(self) -> None:
        for tensor, copy in zip(self._tensors(), self._copies):
            tensor.copy_(copy)

    def _tensors(self) -> List[Tensor]:
        return [
            tensor.detach()
            for hook in self._hooks
            for tensor in (
                *hook.ema_model.parameters(),
                *hook.ema_model.buffers(),
            )
        ]
