"""A mode during the forward passes of a model, and only there."""

import functools
import threading
from typing import Any, Callable, Optional

from torch import nn
from torch.overrides import TorchFunctionMode

from .mode_stack import insert_mode, remove_mode

__all__ = ['ModelPass']


class ModelPass:
    """Shows a mode the operations of a model's forward passes.

    The mode is away while a module in eval mode runs. PyTorch's modules for
    transformers look for such modes there, before they take a fused kernel
    whose numbers differ.

    Args:
        mode: The mode.
        model: The model; None if all operations of the thread count, from
            now on.

    Attributes:
        depth: The number of passes that run now.
        num_seen: The number of all passes.
    """

    def __init__(
        self, mode: TorchFunctionMode, model: Optional[nn.Module]
    ) -> None:
        self.depth = self.num_seen = 0
        self._mode, self._model = mode, model
        # A stack of modes belongs to a thread.
        self._thread = threading.get_ident()
        # The outermost module in eval mode, and how often it is within itself.
        self._hidden_by: Optional[nn.Module] = None
        self._num_hidden = 0
        self._undo: Callable[[], None] = do_nothing
        self.resume()

    def pause(self) -> None:
        """Remove the mode, and all that was added to the model."""
        self._undo()
        if self._is_own_thread():
            remove_mode(self._mode)
        self.depth = 0

    def resume(self) -> None:
        """Watch the passes, again after a pause."""
        if self._model is None:
            self.begin()
        else:
            self._undo = self._watch(self._model)

    def begin(self) -> None:
        """Begin a pass of the model."""
        self.depth += 1
        self.num_seen += 1
        if self.depth == 1:
            self._hidden_by = None
            insert_mode(self._mode)

    def end(self) -> None:
        """End a pass of the model."""
        self.depth = max(self.depth - 1, 0)
        if self.depth == 0:
            remove_mode(self._mode)

    def before_module(self, module: nn.Module) -> None:
        """Take the mode away if a module in eval mode begins."""
        if not self.depth or not self._is_own_thread():
            return
        if module is self._hidden_by:
            self._num_hidden += 1
        elif self._hidden_by is None and not module.training:
            self._hidden_by, self._num_hidden = module, 1
            remove_mode(self._mode)

    def after_module(self, module: nn.Module) -> None:
        """Put the mode back if the module in eval mode ends."""
        if module is not self._hidden_by or not self._is_own_thread():
            return
        self._num_hidden -= 1
        if self._num_hidden == 0:
            self._hidden_by = None
            insert_mode(self._mode)

    def _is_own_thread(self) -> bool:
        return threading.get_ident() == self._thread

    def _watch(self, model: nn.Module) -> Callable[[], None]:
        """Begin and end a pass with each call of the model.

        Its class is changed, because a hook on a module is pickled with it,
        and is not called after an interrupt.

        Returns:
            A function that undoes the change.
        """
        kind: Any = type(model)
        before = vars(kind).get('__call__')
        call = kind.__call__

        @functools.wraps(call)
        def watched(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if module is not model or not self._is_own_thread():
                return call(module, *args, **kwargs)
            self.begin()
            try:
                return call(module, *args, **kwargs)
            finally:
                self.end()

        def undo() -> None:
            # Other code may have replaced the method since.
            if vars(kind).get('__call__') is not watched:
                return
            del kind.__call__
            if before is not None:
                kind.__call__ = before

        kind.__call__ = watched
        return undo


def do_nothing() -> None:
    """Undo nothing."""
