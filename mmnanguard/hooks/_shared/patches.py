"""Changes of foreign objects, undone when training ends.

MMEngine calls no hook when an exception ends training, a halt included.
:class:`PatchingHook` therefore replaces ``train_loop.run`` first, and undoes
its own changes and those of all other hooks when ``run`` is left. The table in
docs/en/patches.md lists every change with its reason.
"""

from contextlib import contextmanager
from typing import Callable, Iterator, List, Optional

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

__all__ = ['Patches', 'PatchingHook', 'replaced']


class Patches:
    """Changes of foreign objects, undone in reverse order."""

    def __init__(self) -> None:
        self._undo: List[Callable[[], None]] = []

    def replace(
        self, owner: object, name: str, value: object
    ) -> Callable[[], None]:
        """Set an attribute of an object or a class.

        What was there before comes back, unless somebody else has replaced
        ``value`` in the meantime.

        Returns:
            Undoes this change alone.
        """
        has_own = name in vars(owner)
        before = vars(owner).get(name)

        def put_back() -> None:
            if vars(owner).get(name) is not value:
                return
            if has_own:
                setattr(owner, name, before)
            else:
                delattr(owner, name)

        setattr(owner, name, value)
        return self.remember(put_back)

    def remember(self, undo: Callable[[], None]) -> Callable[[], None]:
        """Note how to undo a change that the caller has made.

        Returns:
            Undoes this change alone.
        """
        self._undo.append(undo)

        def undo_now() -> None:
            if undo in self._undo:
                self._undo.remove(undo)
                undo()

        return undo_now

    def undo(self) -> None:
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
        patches: Undone when training ends, by whatever it ends.
    """

    def __init__(self) -> None:
        self.patches = Patches()

    def before_run(self, runner: Runner) -> None:
        loop = getattr(runner, '_train_loop', None)
        # A config until a run trains.
        if isinstance(loop, BaseLoop) and run_of(loop) is None:
            RunAndUndo(runner, loop)

    def after_run(self, runner: Runner) -> None:
        """Undo what a test or validation of a trained runner began."""
        loop = getattr(runner, '_train_loop', None)
        run = run_of(loop) if isinstance(loop, BaseLoop) else None
        if run is not None:
            run.undo()


class RunAndUndo:
    """Replacement of ``train_loop.run`` that undoes all hooks' patches.

    Args:
        runner: Holds the hooks.
        loop: Its train loop.
    """

    def __init__(self, runner: Runner, loop: BaseLoop) -> None:
        self._runner = runner
        self._run = loop.run
        self._patches = Patches()
        self._patches.replace(loop, 'run', self)

    def __call__(self) -> object:
        try:
            return self._run()
        finally:
            self.undo()

    def undo(self) -> None:
        for hook in reversed(self._runner.hooks):
            if isinstance(hook, PatchingHook):
                hook.patches.undo()
        self._patches.undo()


def run_of(loop: BaseLoop) -> Optional[RunAndUndo]:
    """Return the replacement of ``loop.run`` that is in place, if any."""
    run = vars(loop).get('run')
    return run if isinstance(run, RunAndUndo) else None
