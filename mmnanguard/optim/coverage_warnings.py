"""Warnings about user code that bypasses the guard."""

import logging
from contextlib import contextmanager
from typing import Iterator, Set

from mmengine.logging import print_log
from torch.optim import Optimizer

__all__ = ['CoverageWarnings']

MESSAGES = {
    'step': (
        'THIS UPDATE WAS NOT GUARDED: {optimizer}.step() was called past the '
        "guard. Call the wrapper's update_params(loss) or step(), and "
        'super().step() from a subclass that overrides it.'
    ),
    'model': (
        'an update came from a forward pass outside of optim_context: '
        'buffers and parameters that it changed cannot be put back, and '
        'gradients have no names. Run it inside `with '
        'optim_wrapper.optim_context(model)`, call super().optim_context '
        'from a subclass that overrides it, or add NanGuardHook, which knows '
        "the runner's model."
    ),
    'loss': (
        "an update came from a backward pass past the wrapper's own: its "
        'loss is not checked, its gradients are. Call '
        'optim_wrapper.backward(loss), and super().backward from a subclass '
        'that overrides it.'
    ),
    'copy': (
        'the state of {optimizer} cannot be copied, so its steps are not '
        'checked: a step that makes NaN of finite gradients is committed, and '
        'found by the next update. To say that this is all right: '
        "optim_wrapper.guard=dict(check_step='never')."
    ),
    'clip': (
        'a subclass overrides _clip_grad: it is called once the gradients '
        'were found finite and are unscaled; what it makes of them is not '
        'checked again.'
    ),
}


class CoverageWarnings:
    """Warns, once each, about user code that bypasses the guard."""

    def __init__(self) -> None:
        self._is_stepping = False
        self._said: Set[str] = set()

    def watch(self, optimizer: Optimizer) -> None:
        """Watch the steps that the optimizer makes."""

        def after_step(optimizer: Optimizer, *_: object) -> None:
            if not self._is_stepping:
                self.warn_once('step', optimizer=type(optimizer).__name__)

        # A hook of the optimizer itself sees calls past every wrapper.
        optimizer.register_step_post_hook(after_step)

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Mark a step as the guard's own."""
        self._is_stepping = True
        try:
            yield
        finally:
            self._is_stepping = False

    def warn_once(self, kind: str, **names: str) -> None:
        """Log a message the first time.

        Args:
            kind: The key of the message.
            names: The words to put into the message.
        """
        if kind in self._said:
            return
        self._said.add(kind)
        print_log(
            f'mmnanguard: {MESSAGES[kind].format(**names)} (said once)',
            logger='current',
            level=logging.WARNING,
        )
