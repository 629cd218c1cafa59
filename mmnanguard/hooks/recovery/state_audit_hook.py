from typing import Any, Dict, Optional

from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.runner import Runner

from mmnanguard.core import TrainingHalted
from mmnanguard.core.checks import check_value, is_count
from mmnanguard.numerics.checkpoints.state_audit import AuditResult, StateAudit
from mmnanguard.registry import HOOKS

from .._shared.audit import Audit
from .._shared.find_guards import find_guards
from .._shared.halt import halt
from .._shared.hook_arguments import DataBatch, Outputs
from .._shared.patches import PatchingHook
from .kept_state import kept_state
from .pointers import LAST_CLEAN, read_pointer
from .safe_checkpoints import SafeCheckpoints

__all__ = ['StateAuditHook']

ACTIONS = ('halt', 'warn')


@HOOKS.register_module()
class StateAuditHook(PatchingHook):
    """Looks for NaN and Inf in all that the run keeps: weights, buffers, the
    optimizer's state and averages (``EMAHook``, ``MeanTeacherHook``).

    Every ``interval`` iterations and before each checkpoint: one pass over
    them, one host read if all is well; with several ranks an exchange more,
    and all reach the same verdict. No checkpoint is written while something
    is bad, see :class:`SafeCheckpoints`.

    What is bad is said in one console line and a row of kind 'audit'. Every
    hook that has a method ``after_audit(runner, audit)`` is handed the
    :class:`Audit`. One that mends the state sets ``audit.is_handled``, on
    all ranks, and training goes on; the checkpoint that was due is left out
    all the same.

    A tensor that is not trained and holds Inf when training begins (a mask)
    is by design.

    Runs after all others, so that a checkpoint's audit is not done twice.

    Args:
        interval: In iterations; with gradient accumulation an audit waits for
            the end of its window. None means before checkpoints only.
        action: When something is bad, 'halt' with ``TrainingHalted`` on all
            ranks, or 'warn' and go on without checkpoints.

    Raises:
        GuardConfigError: For an argument that is not allowed.
    """

    priority = 'LOWEST'

    def __init__(
        self, interval: Optional[int] = 1000, action: str = 'halt'
    ) -> None:
        super().__init__()
        where = 'StateAuditHook.{}'.format
        allowed = f'one of {ACTIONS}'
        check_value(action in ACTIONS, where('action'), action, allowed)
        is_right = interval is None or is_count(interval, least=1)
        allowed = 'a number of iterations above 0, or None'
        check_value(is_right, where('interval'), interval, allowed)
        self._interval = interval
        self._action = action
        self._iter = self._epoch = 0
        self._last_iter: Optional[int] = None
        self._num_told = 0
        self._is_due = False

    def before_train(self, runner: Runner) -> None:
        self._audit = StateAudit(
            kept_state(runner), is_fresh=not runner._has_loaded
        )
        SafeCheckpoints(
            runner,
            self.patches,
            lambda name, is_agreed: self._is_clean(runner, name, is_agreed),
        )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DataBatch = None
    ) -> None:
        # At the end of an epoch the runner's own is one further.
        self._iter, self._epoch = runner.iter + 1, runner.epoch + 1

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DataBatch = None,
        outputs: Outputs = None,
    ) -> None:
        if self._interval and self.every_n_train_iters(runner, self._interval):
            self._is_due = True
        if self._is_due and not is_within_window(runner):
            self._is_due = False
            if self._last_iter != self._iter:
                self._is_clean(runner)

    def _is_clean(
        self,
        runner: Runner,
        checkpoint: Optional[str] = None,
        is_agreed: bool = True,
    ) -> bool:
        """Look, and tell; collective where the ranks are to agree.

        Raises:
            TrainingHalted: If something is bad, 'halt' is the action, and no
                hook has handled it.
        """
        found = [self._audit.check(kept_state(runner))]
        ranks = [get_rank()]
        if is_agreed and get_world_size() > 1:
            found = all_gather_object(found[0])
            ranks = list(range(len(found)))
        if is_agreed:
            self._last_iter = self._iter
        if not any(each.names for each in found):
            return True
        audit = self._describe(runner, dict(zip(ranks, found)), checkpoint)
        runner.logger.error(audit.line())
        runner.call_hook('after_guard_row', row=audit.to_row())
        if not is_agreed or is_within_window(runner):
            return False
        runner.call_hook('after_audit', audit=audit)
        if self._action == 'halt' and not audit.is_handled:
            last_clean = read_pointer(runner.work_dir, LAST_CLEAN)
            story = audit.halt_story(last_clean, bool(find_guards(runner)))
            halt(runner, TrainingHalted(audit.to_event(), story))
        return False

    def _describe(
        self, runner: Runner, found: Dict[int, AuditResult], checkpoint: Any
    ) -> Audit:
        """One story of what the ranks found, by rank."""
        bad = {rank: each for rank, each in found.items() if each.names}
        names = dict.fromkeys(n for each in bad.values() for n in each.names)
        tensors = {
            (tensor.tensor, tensor.name): tensor
            for each in list(bad.values())[::-1]
            for tensor in each.tensors
        }
        guard = next(iter(find_guards(runner).values()), None)
        run = guard.run if guard else ''
        self._num_told += 1
        return Audit(
            iter=self._iter,
            epoch=self._epoch,
            names=tuple(names),
            tensors=tuple(tensors.values()),
            ranks=tuple(bad),
            checkpoint=checkpoint,
            id=f'{run}-{self._iter}-audit.{self._num_told}',
            run=run,
            attempt=guard.attempt if guard else 1,
        )


def is_within_window(runner: Runner) -> bool:
    """Of gradient accumulation: the guard may yet undo what is bad."""
    return any(guard.is_open for guard in find_guards(runner).values())
