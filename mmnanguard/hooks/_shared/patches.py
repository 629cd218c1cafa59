"""Changes of foreign objects, undone when training ends.

MMEngine calls no hook when an exception ends training, a halt included.
:class:`PatchingHook` therefore replaces ``train_loop.run`` first, and undoes
its own changes and those of all other hooks when ``run`` is left. The table in
docs/en/patches.md lists every change with its reason.
"""

from contextlib import contextmanager, suppress
from typing import Callable, Iterator, List, Optional

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

__all__ = ['Patches', 'PatchingHook', 'error_of_run', 'replaced']

MAX_ERROR = 300  # characters of an exception's text


class Patches:
    """Changes of foreign objects, undone in reverse order."""

    def __init__(self) -> None:
        self._undo: List[Callable[[], None]] = []

    def replace(
        self, owner: object, name: str, value: object
    ) -> Callable[[], None]:
        """Set an attribute of an object or a class.

        Undoing restores the previous value, unless other code has replaced
        ``value`` in the meantime.

        Args:
            owner: Object or class to change.
            name: Name of the attribute.
            value: New value of the attribute.

        Returns:
            A function that undoes this change alone.
        """
        # `vars` and not `getattr`: an attribute that was inherited from the
        # class must be inherited again, not become the instance's own.
        was_set = name in vars(owner)
        before = vars(owner).get(name)

        def restore() -> None:
            # Other code has replaced `value` since. Restoring would remove
            # that replacement, which may call `value`.
            if vars(owner).get(name) is not value:
                return
            if was_set:
                setattr(owner, name, before)
            else:
                delattr(owner, name)

        setattr(owner, name, value)
        return self.remember(restore)

    def remember(self, undo: Callable[[], None]) -> Callable[[], None]:
        """Remember how to undo a change that the caller has made.

        Args:
            undo: Function that undoes the change.

        Returns:
            A function that undoes this change alone.
        """
        self._undo.append(undo)

        def undo_now() -> None:
            # Undone already if training has ended in the meantime.
            if undo in self._undo:
                self._undo.remove(undo)
                undo()

        return undo_now

    def undo(self) -> None:
        """Undo all changes, the latest first."""
        # Popped before the call, so that an error cannot undo it twice.
        while self._undo:
            self._undo.pop()()


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Replace an attribute within a ``with`` block."""
    patches = Patches()
    patches.replace(owner, name, value)
    try:
        yield
    finally:
        patches.undo()


class PatchingHook(Hook):
    """Base of hooks that change foreign objects while a run trains.

    A subclass that overrides ``__init__``, ``before_run`` or ``after_run``
    calls the base class's method.

    Attributes:
        patches: Changes that are undone when training ends, whether
            normally or by an exception.
    """

    def __init__(self) -> None:
        self.patches = Patches()

    def before_run(self, runner: Runner) -> None:
        """Make the end of training undo the changes of all hooks."""
        loop = getattr(runner, '_train_loop', None)
        # The loop is a config as long as the run only tests or validates:
        # https://github.com/open-mmlab/mmengine/blob/v0.10.7/mmengine/runner/runner.py#L1727
        # The first PatchingHook replaces `run` on behalf of all of them.
        if isinstance(loop, BaseLoop) and run_of(loop) is None:
            RunAndUndo(runner, loop)

    def after_run(self, runner: Runner) -> None:
        """Undo what a test or validation of a trained runner began."""
        loop = getattr(runner, '_train_loop', None)
        if not isinstance(loop, BaseLoop):
            return
        run = run_of(loop)
        if run is not None:
            run.undo()


class RunAndUndo:
    """Replacement of ``train_loop.run`` that undoes all hooks' patches.

    Args:
        runner: Runner of the training, with its hooks.
        loop: Train loop of the runner.
    """

    def __init__(self, runner: Runner, loop: BaseLoop) -> None:
        # Type and first line of the exception that ended training, or ''.
        # Not the exception itself, whose traceback holds all of the batch.
        self.error = ''
        self._runner = runner
        self._run = loop.run
        self._patches = Patches()
        # Not a patch of one of the hooks: it must be undone last.
        self._patches.replace(loop, 'run', self)

    def __call__(self) -> object:
        try:
            return self._run()
        except BaseException as error:
            self.error = type(error).__name__
            # The text of an error is made by code that may fail as well.
            with suppress(Exception):
                first_line = str(error).partition('\n')[0][:MAX_ERROR]
                self.error += f': {first_line}' * bool(first_line)
            raise
        finally:
            self.undo()

    def undo(self) -> None:
        """Undo the changes of all hooks, then the replacement of ``run``."""
        # Reversed, as several hooks may have replaced the same attribute.
        for hook in reversed(self._runner.hooks):
            if isinstance(hook, PatchingHook):
                hook.patches.undo()
        self._patches.undo()


def error_of_run(runner: Runner) -> str:
    """Return the exception that has just ended training, or ''.

    Only for functions that undo the changes of a hook.
    """
    run = run_of(runner.train_loop)
    return '' if run is None else run.error


def run_of(loop: BaseLoop) -> Optional[RunAndUndo]:
    """Return the replacement of ``loop.run`` that is in place, if any."""
    run = vars(loop).get('run')
    return run if isinstance(run, RunAndUndo) else None
