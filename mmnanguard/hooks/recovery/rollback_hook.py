from typing import Any, List, Optional, Tuple

from mmengine.dist import all_gather_object
from mmengine.runner import Runner

from mmnanguard.core import (
    Action,
    GuardEvent,
    RollbackUnavailable,
    TrainingHalted,
)
from mmnanguard.core.causes import CAUSES
from mmnanguard.core.checks import check_value, is_count, is_finite_number
from mmnanguard.core.rows.rollback_row import RollbackRow
from mmnanguard.numerics.checkpoints.state_audit import StateAudit
from mmnanguard.numerics.guard_protocol import GuardProtocol
from mmnanguard.registry import HOOKS

from .._shared.audit import Audit
from .._shared.find_guards import find_guards, find_wrappers
from .._shared.guard_listener import GuardListener
from .._shared.halt import halt
from .._shared.hook_arguments import DataBatch, Outputs
from .earlier_state import EarlierState, newest_clean_state, present_state
from .kept_state import kept_state

__all__ = ['RollbackHook']


@HOOKS.register_module()
class RollbackHook(GuardListener):
    """Goes back to an earlier state where skipping does not help.

    With ``optim_wrapper.guard=dict(when_exhausted='rollback')``: at the limit
    of skips, where the run diverges (``guard.divergence``), or where weights
    went bad outside any update (an update or a ``StateAuditHook`` finds that),
    the newest state that is older than the trouble comes back: weights,
    buffers, optimizer state, averages of an ``EMAHook``, statistics of the
    guard's rules. Time goes on: iteration, learning rate schedule, data order,
    loss scale and random numbers are not put back, so that what did the harm
    is passed.

    States are kept in memory, on the host (pinned, where there is a GPU):
    each takes as much as weights, optimizer state and averages together. One
    is taken at the start of training, then every ``interval`` iterations,
    outside of windows and of streaks of skips, if all of it is finite: one
    pass and one read, and one small collective.

    Where the same trouble comes back before a newer state was kept, the next
    rollback goes further back. Where none is kept, the newest clean checkpoint
    in the work dir takes its place, but not under FSDP.

    Args:
        interval: In iterations.
        num_kept: States.
        max_rollbacks: In the run, resumes included; then training halts.
        lr_factor: In (0, 1]: learning rates are multiplied by it after a
            rollback, behind the schedulers' backs.
        lr_recovery: Committed updates until they are back; None means never.
        scale_factor: In (0, 1], for the loss scale.
        restore_rng: Also random states: the same numbers are drawn again.

    Raises:
        GuardConfigError: For an argument out of range.
    """

    # After EMAHook, whose averages belong to a state; before CheckpointHook.
    priority = 'BELOW_NORMAL'

    def __init__(
        self,
        interval: int = 500,
        num_kept: int = 2,
        max_rollbacks: int = 3,
        lr_factor: float = 1.0,
        lr_recovery: Optional[int] = None,
        scale_factor: float = 1.0,
        restore_rng: bool = False,
    ) -> None:
        counts = dict(
            interval=interval, num_kept=num_kept, max_rollbacks=max_rollbacks
        )
        if lr_recovery is not None:
            counts['lr_recovery'] = lr_recovery
        for name, count in counts.items():
            check_value(
                is_count(count, least=1),
                f'RollbackHook.{name}',
                count,
                'an integer of at least 1',
            )
        factors = dict(lr_factor=lr_factor, scale_factor=scale_factor)
        for name, factor in factors.items():
            check_value(
                is_finite_number(factor) and 0 < factor <= 1,
                f'RollbackHook.{name}',
                factor,
                'a number above 0, at most 1',
            )
        self._interval = interval
        self._num_kept = num_kept
        self._max_rollbacks = max_rollbacks
        self._lr_factor = float(lr_factor)
        self._lr_recovery = lr_recovery
        self._scale_factor = scale_factor
        self._restore_rng = restore_rng
        self._kept: List[EarlierState] = []
        self._used: Optional[EarlierState] = None
        self._event: Optional[GuardEvent] = None

    def before_train(self, runner: Runner) -> None:
        self._audit = StateAudit(
            kept_state(runner), is_fresh=not runner._has_loaded
        )
        self._kept, self._used, self._event = [], None, None
        self._keep(runner, runner.iter)

    def after_guard_event(self, runner: Runner, event: GuardEvent) -> None:
        if event.action is Action.ROLLBACK:
            self._event = event  # others still look at things as they were

    def after_audit(self, runner: Runner, audit: Audit) -> None:
        """What an audit found is mended at once."""
        guards = find_guards(runner)
        if not guards or not all(map(rolls_back, guards.values())):
            return
        event = audit.to_event().replace(optimizer=next(iter(guards)))
        try:
            self._roll_back(runner, event)
        except TrainingHalted as error:
            runner.logger.error(f'mmnanguard: no rollback: {error}')
            return
        audit.is_handled = True

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DataBatch = None,
        outputs: Outputs = None,
    ) -> None:
        event, self._event = self._event, None
        if event is not None:
            try:
                self._roll_back(runner, event)
            except TrainingHalted as error:
                halt(runner, error)
            return
        guards = find_guards(runner).values()
        is_quiet = all(
            guard.state.consecutive_skips == 0 and not guard.is_open
            for guard in guards
        )
        now = runner.iter + 1
        is_due = not self._kept or self._kept[-1].iter + self._interval <= now
        if is_quiet and is_due:
            self._keep(runner, now)

    def _keep(self, runner: Runner, iteration: int) -> None:
        is_finite = not self._audit.check(kept_state(runner)).names
        if not all(all_gather_object(is_finite)):
            runner.logger.error(
                f'mmnanguard: iteration {iteration}: weights, buffers, '
                'averages or optimizer state are not finite: not kept as a '
                'state to go back to'
            )
            return
        self._kept.append(present_state(runner, iteration))
        del self._kept[: -self._num_kept]

    def _roll_back(self, runner: Runner, event: GuardEvent) -> None:
        guards = find_guards(runner)
        guard = guards[event.optimizer]
        if guard.state.num_rollbacks >= self._max_rollbacks:
            raise TrainingHalted(
                *tell_end(
                    guard,
                    event,
                    f'Rolled back {self._max_rollbacks} times, which is '
                    'max_rollbacks.',
                )
            )
        kept = self._choose(runner, event)
        if kept is None:
            raise RollbackUnavailable(
                *tell_end(
                    guard,
                    event,
                    'No state is kept that is older than the trouble (see '
                    'RollbackHook.interval and num_kept), and the work dir '
                    'has no clean checkpoint of before.',
                )
            )
        factor = self._lr_factor * guard.state.lr_factor
        step = (1 - factor) / self._lr_recovery if self._lr_recovery else 0.0
        kept.restore(runner, factor, step, self._restore_rng)
        for one in guards.values():
            self._lower(one.scaler)
        self._used = kept
        rollback = RollbackRow(
            id=event.id,
            iter=event.iter,
            to=kept.iter,
            path=kept.path,
            num_rollbacks=guard.state.num_rollbacks,
            lr_factor=factor,
            loss_scale=guard.scaler.get_scale(),
        )
        runner.logger.warning(rollback.line(self._max_rollbacks))
        runner.call_hook('after_guard_row', row=rollback.to_row())

    def _choose(
        self, runner: Runner, event: GuardEvent
    ) -> Optional[EarlierState]:
        """The newest that is older than the trouble, and not the one that
        led back to it, unless it is all there is; else one on disk.
        """
        trouble = event.since or event.iter
        if CAUSES[event.cause].is_gradual:
            wrapper = find_wrappers(runner)[event.optimizer]
            divergence = find_guards(runner)[event.optimizer].policy.divergence
            assert divergence is not None  # it is the cause
            window = divergence.window
            # Its median is above the limit: about half of it is spoilt.
            trouble -= window * wrapper._accumulative_counts
        older = [kept for kept in self._kept if kept.iter < trouble]
        if len(older) > 1 and older[-1] is self._used:
            older.pop()
        self._kept = older
        return older[-1] if older else newest_clean_state(runner, trouble)

    def _lower(self, scaler: Any) -> None:
        if scaler.is_enabled():
            scale = scaler.get_scale() * self._scale_factor
            scale = max(scale, scaler.min_scale)
            scaler.load_state_dict(dict(scale=scale))


def tell_end(
    guard: GuardProtocol, event: GuardEvent, why: str
) -> Tuple[GuardEvent, str]:
    """Event and story of a halt in place of a rollback."""
    halted = event.replace(action=Action.HALT)
    return halted, f'{guard.halted(halted)}\n  {why}'


def rolls_back(guard: GuardProtocol) -> bool:
    return guard.policy.when_exhausted == 'rollback'
