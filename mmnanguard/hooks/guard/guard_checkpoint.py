from typing import Any, Dict, Iterator, List, Mapping, Optional

from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop, Runner

from mmnanguard.numerics.base.rng_state import read_rng, set_rng
from mmnanguard.numerics.checkpoints.saved_optimizer import GUARD_KEY
from mmnanguard.numerics.guard_protocol import GuardedProtocol

from .._shared.hook_arguments import Checkpoint
from .._shared.patches import Patches

__all__ = ['GuardCheckpoint']


class GuardCheckpoint:
    """What a checkpoint needs beyond the optimizer wrapper's own state.

    Some strategies (FSDP's) save only ``state`` and ``param_groups`` of an
    optimizer wrapper; the guard's counters and the loss scale then go under
    a key of their own.

    Args:
        save_rng: Also save the random state of every rank, so that a resumed
            run draws what the uninterrupted one would have drawn: dropout,
            and augmentation, whose workers MMEngine seeds anew in each
            process. The run then draws the same with and without validation.
            Not what workers draw that outlive an epoch, see
            :func:`draws_anew`.
    """

    def __init__(self, save_rng: bool = False) -> None:
        self._save_rng = save_rng
        self._loaded: Mapping[str, Any] = {}
        self._states: Optional[List[Dict[str, Any]]] = None
        self._before_val: Optional[Dict[str, Any]] = None
        self._is_told = False

    def gather(self, runner: Runner, is_due: Optional[bool] = None) -> None:
        """Before a checkpoint; collective, since only rank 0 saves.

        Args:
            runner: The runner.
            is_due: None asks the runner's ``CheckpointHook``.
        """
        self._states = None
        if not self._save_rng:
            return
        if is_due is None:
            is_due = any(
                is_due_now(hook, runner)
                for hook in runner.hooks
                if isinstance(hook, CheckpointHook)
            )
        if is_due and get_world_size() > 1:
            self._states = all_gather_object(read_rng())

    def save(
        self,
        runner: Runner,
        checkpoint: Checkpoint,
        wrappers: Mapping[str, OptimWrapper],
    ) -> None:
        saved: Dict[str, Any] = {}
        optimizer = checkpoint.get('optimizer', {'guard': 'not wanted'})
        parts = optimizer.values() if len(wrappers) > 1 else [optimizer]
        if not any('guard' in part for part in parts):
            saved['guards'] = {
                name: dict(
                    guard=wrapper.guard.state_dict(),
                    loss_scaler=wrapper.guard.scaler.state_dict(),
                )
                for name, wrapper in wrappers.items()
                if isinstance(wrapper, GuardedProtocol)
            }
        if self._save_rng:
            states = [read_rng()] if get_world_size() == 1 else self._states
            if states is None:
                runner.logger.warning(
                    'mmnanguard: save_rng found no random states of the '
                    'other ranks for this checkpoint, which was saved '
                    'outside of the CheckpointHook: it has none'
                )
            else:
                saved['rng'] = states
        if saved:
            checkpoint[GUARD_KEY] = saved

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Keep what was saved until the run is set up."""
        self._loaded = checkpoint.get(GUARD_KEY, {})

    def resume_guards(
        self, runner: Runner, wrappers: Mapping[str, OptimWrapper]
    ) -> None:
        """Does nothing for a checkpoint that was loaded to begin anew."""
        if runner.iter == 0:
            self._loaded = {}
        for name, saved in self._loaded.get('guards', {}).items():
            wrapper = wrappers.get(name)
            if isinstance(wrapper, GuardedProtocol):
                guard = wrapper.guard
                guard.load_state_dict(saved['guard'])
                guard.scaler.load_state_dict(saved['loss_scaler'])

    def resume_rng(self, runner: Runner, patches: Patches) -> None:
        """Before an epoch; only the first after a resume does anything."""
        if self._save_rng and not self._is_told and draws_anew(runner):
            runner.logger.warning(
                'mmnanguard: save_rng cannot save the random state of '
                'workers that outlive an epoch: after a resume augmentation '
                'is drawn anew. Set train_dataloader.persistent_workers='
                'False if it is to be the same.'
            )
        self._is_told = True
        states = self._loaded.get('rng')
        self._loaded = {}
        if states is None:
            return
        if len(states) != get_world_size():
            runner.logger.warning(
                f'mmnanguard: the checkpoint has random states of '
                f'{len(states)} ranks, this run has {get_world_size()}: '
                'they are not used'
            )
            return
        state = states[get_rank()]
        if hasattr(runner.train_loop, 'dataloader_iterator'):
            SetRngAfter(runner.train_loop, state, patches)
        else:
            set_rng(state)

    def before_val(self) -> None:
        """What validation draws is drawn apart: a checkpoint comes before
        it, and a resumed run goes on after it.
        """
        self._before_val = read_rng() if self._save_rng else None

    def after_val(self) -> None:
        if self._before_val is not None:
            set_rng(self._before_val)


def is_due_now(hook: CheckpointHook, runner: Runner) -> bool:
    """Will this hook save after the present iteration?"""
    if hook.by_epoch:
        return False
    return hook.every_n_train_iters(
        runner, hook.interval, hook.save_begin
    ) or (hook.save_last and hook.is_last_train_iter(runner))


def draws_anew(runner: Runner) -> bool:
    """Does a resumed run draw other augmentation whatever was saved?

    Persistent workers are seeded once and draw on from epoch to epoch, while
    a run that resumes at an epoch has new ones. A loop of iterations draws
    all batches again, from the first.
    """
    loop = runner.train_loop
    loader = getattr(loop, 'dataloader', None)
    return not hasattr(loop, 'dataloader_iterator') and getattr(
        loader, 'persistent_workers', False
    )


class SetRngAfter:
    """Stands in for a loop's data iterator until the skipped batches of a
    resumed run are drawn: there is no hook at that moment.

    Args:
        loop: Whose ``dataloader_iterator`` it stands in for.
        state: Of :func:`read_rng`.
        patches: Give the loop its own iterator back, whatever happens.
    """

    def __init__(
        self, loop: IterBasedTrainLoop, state: Dict[str, Any], patches: Patches
    ) -> None:
        self._state = state
        self._iterator = loop.dataloader_iterator
        # onedl-mmengine has an option to begin with the first batch again.
        is_anew = getattr(loop, 'fast_forward_on_resume', False)
        self._num_skipped = 0 if is_anew else loop.iter
        self._step_aside = patches.replace(loop, 'dataloader_iterator', self)

    def __iter__(self) -> Iterator[Any]:
        return self

    def skip_iter(self, num_iters: int) -> None:
        """As in MMEngine: onedl-mmengine 0.10.12 has samplers that leave out
        what was trained on, and its workers then draw anew.
        """
        for _ in range(num_iters):
            next(self)

    def __next__(self) -> Any:
        if self._num_skipped == 0:
            set_rng(self._state)
            self._step_aside()
        self._num_skipped -= 1
        return next(self._iterator)
