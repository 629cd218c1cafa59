"""Checkpoints of MMEngine that are written only while the state is clean.

MMEngine has no hook that can refuse a checkpoint, so :class:`SafeCheckpoints`
replaces methods of the runner and of ``CheckpointHook``.
"""

import logging
import os
from contextlib import contextmanager
from functools import partial
from tempfile import TemporaryDirectory
from typing import Callable, Dict, Iterator, List, Set, Tuple

from mmengine.dist import barrier, get_world_size, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mmnanguard._console import say
from mmnanguard._support.escape import escape

from .._shared.patches import Patches, replaced
from .atomic_checkpoint_writes import atomic_checkpoint_writes
from .pointers import LAST_CLEAN, write_pointer

__all__ = ['SafeCheckpoints']


class SafeCheckpoints:
    """Lets MMEngine's checkpoints through if the state is clean.

    While attached, a ``CheckpointHook`` saves nothing, removes nothing and
    moves no pointer when the state is bad. When the state is clean, the hook
    works as always, with three differences: files get their names when they
    are complete; files that ``max_keep_ckpts`` and ``save_best`` remove are
    deleted after that; and 'last_clean_checkpoint' in the work dir names the
    newest clean checkpoint, beside MMEngine's 'last_checkpoint'.

    If other code calls ``runner.save_checkpoint``, the state is checked by
    the calling rank alone, and no pointer moves.

    Args:
        runner: The runner whose ``CheckpointHook`` is changed.
        patches: Patches that undo the change when training ends.
        is_clean: A function that returns whether the state is clean. It gets
            the name of the checkpoint, and whether all ranks make this call;
            only then may it be collective.
    """

    def __init__(
        self,
        runner: Runner,
        patches: Patches,
        is_clean: Callable[[str, bool], bool],
    ) -> None:
        self._runner = runner
        self._is_clean = is_clean
        self._is_saving = False
        self._written: Set[str] = set()
        # Removals that wait for the next file to be complete.
        self._leftover: List[Tuple[Callable[[str], None], str]] = []

        def wrap(
            owner: object, name: str, replacement: Callable[..., None]
        ) -> None:
            original = getattr(owner, name)
            patches.replace(owner, name, partial(replacement, original))

        wrap(runner, 'save_checkpoint', self._save_checkpoint)
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook):
                # Each save has to be refused before MMEngine removes older
                # files, which it does first:
                # https://github.com/open-mmlab/mmengine/blob/v0.10.7/mmengine/hooks/checkpoint_hook.py#L413
                for name, replacement in (
                    ('_save_checkpoint_with_step', self._save_with_step),
                    ('_save_best_checkpoint', self._save_best),
                    ('_publish_model', self._publish),
                ):
                    wrap(hook, name, partial(replacement, hook))

    def _save_checkpoint(
        self,
        save: Callable[..., None],
        out_dir: str,
        filename: str,
        *args: object,
        **kwargs: object,
    ) -> None:
        """Save a checkpoint for ``CheckpointHook`` or for other code."""
        # A save by CheckpointHook has been checked by all ranks already.
        if not self._is_saving:
            is_lone = get_world_size() == 1
            # A FlexibleRunner may save on all ranks together. If one rank
            # alone found its part bad and left, the others would hang.
            can_refuse = is_lone or isinstance(self._runner, Runner)
            if can_refuse and not self._is_clean(filename, is_lone):
                return
        self._written.add(os.path.join(str(out_dir), filename))
        with atomic_checkpoint_writes(self._make_room):
            save(out_dir, filename, *args, **kwargs)

    def _save_with_step(
        self,
        hook: CheckpointHook,
        save: Callable[..., None],
        runner: Runner,
        step: int,
        *args: object,
        **kwargs: object,
    ) -> None:
        """Save by interval, or once more after a new best checkpoint."""
        # _save_best_checkpoint ends with this call, to save the name of the
        # new best file. The state was checked before.
        if self._is_saving:
            self._save_and_point(hook, save, runner, step, *args, **kwargs)
        elif self._is_clean(hook.filename_tmpl.format(step), True):
            with self._surviving(), self._removing_last(hook):
                self._save_and_point(hook, save, runner, step, *args, **kwargs)

    def _save_best(
        self,
        hook: CheckpointHook,
        save: Callable[..., None],
        runner: Runner,
        metrics: Dict[str, float],
    ) -> None:
        """Save the best checkpoint."""
        # MMEngine calls this method after each validation, also without
        # save_best, when no audit is needed.
        if hook.save_best and self._is_clean('the best checkpoint', True):
            with self._surviving(), self._removing_last(hook):
                save(runner, metrics)

    @staticmethod
    def _publish(
        hook: CheckpointHook, publish: Callable[..., None], *args: object
    ) -> None:
        """Publish a checkpoint, which was audited when it was saved."""
        with atomic_checkpoint_writes():
            publish(*args)

    @staticmethod
    def _save_and_point(
        hook: CheckpointHook,
        save: Callable[..., None],
        runner: Runner,
        *args: object,
        **kwargs: object,
    ) -> None:
        """Save, and move the pointers once all ranks have saved."""
        if not is_main_process():
            save(runner, *args, **kwargs)
            wait_for_ranks(runner)
            return
        # MMEngine writes its pointer in place, as soon as this rank has saved.
        # A folder inside the work dir is on the same file system, so that the
        # pointer can be moved in one step.
        with TemporaryDirectory(prefix='.', dir=runner.work_dir) as folder:
            save(RunnerInFolder(runner, folder), *args, **kwargs)
            wait_for_ranks(runner)
            for name in os.listdir(folder):
                os.replace(
                    os.path.join(folder, name),
                    os.path.join(runner.work_dir, name),
                )
        # CheckpointHook sets the path before it saves.
        assert hook.last_ckpt is not None
        write_pointer(runner.work_dir, LAST_CLEAN, hook.last_ckpt)

    @contextmanager
    def _removing_last(self, hook: CheckpointHook) -> Iterator[None]:
        """Postpone the removal of older files to the end of the block."""
        postponed = PostponedRemoval(hook.file_backend)
        postponed.removals = self._leftover
        self._leftover = postponed.removals
        self._is_saving = True
        self._written.clear()
        try:
            with replaced(hook, 'file_backend', postponed):
                yield
        finally:
            self._is_saving = False
        # Not reached after an error: the older files are then still needed,
        # and are removed after the next save.
        self._make_room()

    def _make_room(self) -> bool:
        """Remove the older files; return whether there were any."""
        removals = self._leftover[:]
        self._leftover.clear()
        has_removed = False
        for remove, path in removals:
            # A new best file may have the name of the previous best file.
            if path not in self._written:
                remove(path)
                has_removed = True
        return has_removed

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """Let a checkpoint that cannot be written cost itself alone."""
        try:
            yield
        except OSError as error:
            # A FlexibleRunner writes on all ranks, which wait for this one.
            if not isinstance(self._runner, Runner):
                raise
            say(
                f'mmnanguard: a checkpoint is lost ({escape(error)}); '
                'training goes on, and older checkpoints are kept',
                logging.ERROR,
                self._runner.logger,
            )


def wait_for_ranks(runner: Runner) -> None:
    """Wait until all ranks have saved, where more than one rank saves."""
    # A strategy of FlexibleRunner can write a file per rank. With Runner only
    # the main process saves.
    if not isinstance(runner, Runner):
        barrier()


class RunnerInFolder:
    """A view of a runner with another work dir."""

    def __init__(self, runner: Runner, work_dir: str) -> None:
        self._runner = runner
        self.work_dir = work_dir

    def __getattr__(self, name: str) -> object:
        return getattr(self._runner, name)


class PostponedRemoval:
    """A file backend that notes removals instead of performing them."""

    def __init__(self, backend: LocalBackend) -> None:
        self._backend = backend
        self.removals: List[Tuple[Callable[[str], None], str]] = []

    def remove(self, path: str) -> None:
        self.removals.append((self._backend.remove, path))

    def rmtree(self, path: str) -> None:
        self.removals.append((self._backend.rmtree, path))

    def __getattr__(self, name: str) -> object:
        return getattr(self._backend, name)
