"""The entries that an exact resume needs beside MMEngine's in a checkpoint.

The entries are the random state of each rank and, where MMEngine saves only
a part of the optimizer wrapper's state, the guards.
"""

import logging
from typing import Any, Dict, List, Mapping, Optional

from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

from mmnanguard._console import say
from mmnanguard.numerics.base.rng_state import RngState, read_rng, set_rng
from mmnanguard.numerics.checkpoints.saved_optimizer import GUARD_KEY
from mmnanguard.numerics.guard_protocol import GuardedProtocol

from .._shared.hook_arguments import Checkpoint, DataBatch
from .._shared.patches import Patches

__all__ = ['GuardCheckpoint']


class GuardCheckpoint:
    """Saves and resumes guards and random states.

    Some strategies (FSDP's) save only ``state`` and ``param_groups`` of an
    optimizer wrapper. The guard's counters and the loss scale then go under a
    separate key of the checkpoint.

    Args:
        save_rng: Whether to save the random state of every rank too. A
            resumed run then draws the random numbers that the uninterrupted
            run would have drawn, for dropout and for augmentation, although
            MMEngine seeds the workers anew in each process. Validation then
            does not change these numbers. The draws of workers that outlive
            an epoch are not resumed, see :func:`draws_anew`.
    """

    def __init__(self, save_rng: bool = False) -> None:
        self._save_rng = save_rng
        self._loaded: Mapping[str, Any] = {}
        self._states: Optional[List[RngState]] = None
        self._before_val: Optional[RngState] = None
        self._has_checked_workers = False

    def gather(self, runner: Runner, is_due: Optional[bool] = None) -> None:
        """Gather the random states of all ranks before a checkpoint.

        Collective, unlike :meth:`save`, which only the saving rank calls.

        Args:
            runner: The runner of the training.
            is_due: Whether a checkpoint follows. None asks the
                ``CheckpointHook`` of the runner.
        """
        # A checkpoint that other code saves later must not get the states of
        # an earlier iteration.
        self._states = None
        if not self._save_rng:
            return
        if is_due is None:
            is_due = is_checkpoint_due(runner)
        if is_due and get_world_size() > 1:
            self._states = all_gather_object(read_rng())

    def save(
        self,
        runner: Runner,
        checkpoint: Checkpoint,
        wrappers: Mapping[str, OptimWrapper],
    ) -> None:
        """Add the guards and random states to a checkpoint.

        Not collective: ``Runner.save_checkpoint`` runs on the main process
        alone.
        """
        saved: Dict[str, object] = {}
        if lacks_guards(checkpoint, len(wrappers)):
            saved['guards'] = guard_states(wrappers)
        states = self._states
        if self._save_rng and get_world_size() == 1:
            states = [read_rng()]
        if self._save_rng and states is None:
            say(
                'mmnanguard: save_rng found no random states of the '
                'other ranks for this checkpoint, which was saved '
                'outside of the CheckpointHook: it has none',
                logging.WARNING,
                runner.logger,
            )
        elif self._save_rng:
            saved['rng'] = states
        # Without an entry, a file is equal to MMEngine's.
        if saved:
            checkpoint[GUARD_KEY] = saved

    def load(self, checkpoint: Checkpoint) -> None:
        """Keep the entries of a checkpoint until the run is set up."""
        # MMEngine loads before before_train, where the guards are found.
        self._loaded = checkpoint.get(GUARD_KEY, {})

    def resume_guards(
        self, runner: Runner, wrappers: Mapping[str, OptimWrapper]
    ) -> None:
        """Restore the guards, unless the loaded checkpoint starts a new run.

        In a new run (``load_from`` without ``resume``), all loaded entries
        are dropped.
        """
        # MMEngine calls the same hook method for load_from and for resume.
        # Only a resume sets the iteration.
        if runner.iter == 0:
            self._loaded = {}
        for name, saved in self._loaded.get('guards', {}).items():
            wrapper = wrappers.get(name)
            # The config may name other optimizers or wrappers by now.
            if isinstance(wrapper, GuardedProtocol):
                guard = wrapper.guard
                guard.load_state_dict(saved['guard'])
                guard.scaler.load_state_dict(saved['loss_scaler'])

    def resume_rng(self, runner: Runner, patches: Patches) -> None:
        """Set the saved random state before the first epoch after a resume.

        Before any later epoch, it does nothing.
        """
        if self._save_rng:
            self._warn_of_workers(runner)
        states = self._loaded.get('rng')
        self._loaded = {}
        if states is None:
            return
        if len(states) != get_world_size():
            say(
                f'mmnanguard: the checkpoint has random states of '
                f'{len(states)} ranks, this run has {get_world_size()}: '
                'they are not used',
                logging.WARNING,
                runner.logger,
            )
            return
        state = states[get_rank()]
        # A loop of iterations first draws the batches that were trained on,
        # which would use up random numbers if the state were set now.
        if hasattr(runner.train_loop, 'dataloader_iterator'):
            RngSettingIterator(runner.train_loop, state, patches)
        else:
            set_rng(state)

    def _warn_of_workers(self, runner: Runner) -> None:
        """Warn once if random states cannot be saved or resumed."""
        is_engine = not isinstance(runner.model, nn.Module)
        if not self._has_checked_workers and is_engine:
            say(
                'mmnanguard: save_rng has no effect with an engine '
                "(DeepSpeed, ColossalAI): MMEngine's strategy calls no hook "
                'when it saves',
                logging.WARNING,
                runner.logger,
            )
        if not self._has_checked_workers and draws_anew(runner):
            say(
                'mmnanguard: save_rng cannot save the random state of '
                'workers that outlive an epoch: after a resume augmentation '
                'is drawn anew. Set train_dataloader.persistent_workers='
                'False if it is to be the same.',
                logging.WARNING,
                runner.logger,
            )
        self._has_checked_workers = True

    def before_val(self) -> None:
        """Note the random state, for :meth:`after_val`."""
        # A checkpoint is written before validation. A run that is resumed
        # from it continues after validation, without its random draws.
        self._before_val = None
        if self._save_rng:
            self._before_val = read_rng()

    def after_val(self) -> None:
        """Undo the random draws of validation."""
        if self._before_val is not None:
            set_rng(self._before_val)


def lacks_guards(checkpoint: Checkpoint, num_wrappers: int) -> bool:
    """Whether the guards are to be saved apart from the optimizer."""
    # With save_optimizer=False, a lone guard is left out like its optimizer,
    # and the guards of several optimizers are saved.
    if 'optimizer' not in checkpoint:
        return num_wrappers > 1
    optimizer = checkpoint['optimizer']
    parts = [optimizer]
    # OptimWrapperDict saves one dict per optimizer name.
    if num_wrappers > 1:
        parts = optimizer.values()
    return not any('guard' in part for part in parts)


def guard_states(
    wrappers: Mapping[str, OptimWrapper],
) -> Dict[str, Dict[str, object]]:
    """Return the state of each guard and its loss scaler, by optimizer."""
    states: Dict[str, Dict[str, object]] = {}
    for name, wrapper in wrappers.items():
        if isinstance(wrapper, GuardedProtocol):
            states[name] = dict(
                guard=wrapper.guard.state_dict(),
                loss_scaler=wrapper.guard.scaler.state_dict(),
            )
    return states


def is_checkpoint_due(runner: Runner) -> bool:
    """Whether a ``CheckpointHook`` will save after the present iteration."""
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and is_due_now(hook, runner):
            return True
    return False


def is_due_now(hook: CheckpointHook, runner: Runner) -> bool:
    """Whether this hook will save after the present iteration."""
    # A hook that counts epochs saves in after_train_epoch.
    if hook.by_epoch:
        return False
    # The condition of CheckpointHook.after_train_iter:
    # https://github.com/open-mmlab/mmengine/blob/v0.10.7/mmengine/hooks/checkpoint_hook.py#L661
    return hook.every_n_train_iters(
        runner, hook.interval, hook.save_begin
    ) or (hook.save_last and hook.is_last_train_iter(runner))


def draws_anew(runner: Runner) -> bool:
    """Whether a resumed run draws other augmentation despite ``save_rng``.

    Persistent workers are seeded once and continue to draw from epoch to
    epoch, while a run that resumes at an epoch starts new workers. A loop of
    iterations draws all batches again, from the first, so that its workers
    reach their former state.
    """
    loop = runner.train_loop
    loader = getattr(loop, 'dataloader', None)
    return not hasattr(loop, 'dataloader_iterator') and getattr(
        loader, 'persistent_workers', False
    )


class RngSettingIterator:
    """Data iterator that sets the random state after the skipped batches.

    It replaces the data iterator of a resumed loop until the loop has skipped
    the batches that were trained on, because MMEngine calls no hook at that
    moment
    (https://github.com/open-mmlab/mmengine/blob/v0.10.7/mmengine/runner/loops.py#L284).

    Args:
        loop: The loop whose ``dataloader_iterator`` is replaced.
        state: The random state, from :func:`read_rng`.
        patches: Patches that restore the loop's iterator at the end of
            training, unless the iterator was restored before.
    """

    def __init__(
        self, loop: IterBasedTrainLoop, state: RngState, patches: Patches
    ) -> None:
        self._state = state
        self._iterator = loop.dataloader_iterator
        # onedl-mmengine has an option to begin with the first batch again.
        is_anew = getattr(loop, 'fast_forward_on_resume', False)
        self._num_skipped = loop.iter
        if is_anew:
            self._num_skipped = 0
        self._restore_iterator = patches.replace(
            loop, 'dataloader_iterator', self
        )

    def __iter__(self) -> 'RngSettingIterator':
        return self

    def skip_iter(self, num_iters: int) -> None:
        """Draw and drop batches, as MMEngine does.

        onedl-mmengine 0.10.12 calls this method. Its own iterator skips
        indices in the sampler instead, so that its workers draw anew.
        """
        for _ in range(num_iters):
            next(self)

    def __next__(self) -> DataBatch:
        # The first batch to train on. Its augmentation in the main process
        # (num_workers=0) already needs the saved state.
        if self._num_skipped == 0:
            set_rng(self._state)
            self._restore_iterator()
        self._num_skipped -= 1
        return next(self._iterator)
