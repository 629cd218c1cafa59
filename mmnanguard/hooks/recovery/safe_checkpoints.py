import os
from contextlib import contextmanager
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, Callable, Dict, Iterator, List, Set, Tuple

from mmengine.dist import barrier, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from .._shared.patches import Patches, replaced
from .atomic_checkpoint_writes import atomic_checkpoint_writes
from .pointers import LAST_CLEAN, write_pointer

__all__ = ['SafeCheckpoints']


class SafeCheckpoints:
    """Lets MMEngine's checkpoints through if the state is clean.

    While attached, a ``CheckpointHook`` saves nothing, removes nothing and
    moves no pointer when the state is bad. When it is clean, it does what it
    always does, with three differences: files appear under their names once
    they are complete; what ``max_keep_ckpts`` and ``save_best`` remove goes
    only then; and 'last_clean_checkpoint' in the work dir names the newest
    one, beside MMEngine's 'last_checkpoint'.

    ``runner.save_checkpoint``, called by anyone else, is held to the same,
    by the calling rank alone, and moves no pointer.

    Args:
        runner: Whose ``CheckpointHook`` is changed.
        patches: Undo the change.
        is_clean: Is the state clean? Is given the checkpoint's name, and
            whether all ranks ask: only then may it be collective.
    """

    def __init__(
        self,
        runner: Any,
        patches: Patches,
        is_clean: Callable[[str, bool], bool],
    ) -> None:
        self._runner = runner
        self._is_clean = is_clean
        self._is_saving = False
        self._written: Set[str] = set()

        def wrap(
            owner: object, name: str, instead: Callable[..., None]
        ) -> None:
            patches.replace(
                owner, name, partial(instead, getattr(owner, name))
            )

        wrap(runner, 'save_checkpoint', self._save_checkpoint)
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook):
                for name, instead in (
                    ('_save_checkpoint_with_step', self._save_with_step),
                    ('_save_best_checkpoint', self._save_best),
                    ('_publish_model', self._publish),
                ):
                    wrap(hook, name, partial(instead, hook))

    def _save_checkpoint(
        self,
        save: Callable[..., None],
        out_dir: str,
        filename: str,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if not self._is_saving:
            is_lone = get_world_size() == 1
            # A strategy may need all ranks, which may not all see it.
            is_asked = is_lone or isinstance(self._runner, Runner)
            if is_asked and not self._is_clean(filename, is_lone):
                return
        self._written.add(os.path.join(str(out_dir), filename))
        with atomic_checkpoint_writes():
            save(out_dir, filename, *args, **kwargs)

    def _save_with_step(
        self,
        hook: CheckpointHook,
        save: Callable[..., None],
        runner: Any,
        step: int,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if self._is_saving:  # for the sake of a best one
            self._point(hook, save, runner, step, *args, **kwargs)
        elif self._is_clean(hook.filename_tmpl.format(step), True):
            with self._removing_last(hook):
                self._point(hook, save, runner, step, *args, **kwargs)

    def _save_best(
        self,
        hook: CheckpointHook,
        save: Callable[..., None],
        runner: Any,
        metrics: Dict[str, float],
    ) -> None:
        if hook.save_best and self._is_clean('the best checkpoint', True):
            with self._removing_last(hook):
                save(runner, metrics)

    @staticmethod
    def _publish(
        hook: CheckpointHook, publish: Callable[..., None], *args: Any
    ) -> None:
        with atomic_checkpoint_writes():
            publish(*args)

    @staticmethod
    def _point(
        hook: CheckpointHook,
        save: Callable[..., None],
        runner: Any,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Save, and move the pointers once all ranks are through."""
        if not is_main_process():
            save(runner, *args, **kwargs)
            wait_for_ranks(runner)
            return
        # MMEngine writes its pointer in place.
        with TemporaryDirectory(prefix='.', dir=runner.work_dir) as aside:
            save(Elsewhere(runner, aside), *args, **kwargs)
            wait_for_ranks(runner)
            for name in os.listdir(aside):
                os.replace(
                    os.path.join(aside, name),
                    os.path.join(runner.work_dir, name),
                )
        assert hook.last_ckpt is not None  # it has just saved one
        write_pointer(runner.work_dir, LAST_CLEAN, hook.last_ckpt)

    @contextmanager
    def _removing_last(self, hook: CheckpointHook) -> Iterator[None]:
        postponed = PostponedRemoval(hook.file_backend)
        self._is_saving = True
        self._written.clear()
        try:
            with replaced(hook, 'file_backend', postponed):
                yield
        finally:
            self._is_saving = False
        for remove, path in postponed.removals:
            if path not in self._written:
                remove(path)


def wait_for_ranks(runner: Any) -> None:
    """Of a strategy, each rank may write a part."""
    if not isinstance(runner, Runner):
        barrier()


class Elsewhere:
    """The runner, but for its work dir."""

    def __init__(self, runner: Any, work_dir: str) -> None:
        self._runner = runner
        self.work_dir = work_dir

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)


class PostponedRemoval:
    """A file backend that notes what is to be removed."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.removals: List[Tuple[Callable[[str], None], str]] = []

    def remove(self, path: str) -> None:
        self.removals.append((self._backend.remove, path))

    def rmtree(self, path: str) -> None:
        self.removals.append((self._backend.rmtree, path))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)
