"""The hook that goes back to an earlier state where skipping does not help."""

from typing import List, Optional, Tuple

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
from mmnanguard.numerics.update.loss_scale import GuardedGradScaler
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

    The hook needs ``optim_wrapper.guard=dict(when_exhausted='rollback')``. It
    acts at the limit of skips, where the run diverges (``guard.divergence``),
    and where weights went bad outside any update, which an update or a
    ``StateAuditHook`` reports. It then restores the newest state that is older
    than the trouble: weights, buffers, optimizer state, averages of an
    ``EMAHook``, and the statistics of the guard's rules. Iteration, learning
    rate schedule, data order, loss scale and random state are not restored, so
    training moves past the offending batch.

    States are kept in host memory (pinned, if there is a GPU). Each takes as
    much memory as weights, optimizer state and averages together. The hook
    keeps a state at the start of training, and then every ``interval``
    iterations, outside of windows and of streaks of skips, if all of it is
    finite. This check takes one pass, one host read and one small collective.

    If the trouble returns before a newer state was kept, the next rollback
    goes further back. If no state is left, the newest clean checkpoint in the
    work dir is used, but not under FSDP.

    Args:
        interval: Number of iterations between two kept states.
        num_kept: Number of states that are kept.
        max_rollbacks: Number of rollbacks in the run, resumes included, after
            which training halts.
        lr_factor: Factor on the learning rates after a rollback, in (0, 1].
            It is applied outside the schedulers.
        lr_recovery: Number of committed updates until the learning rates are
            back; None means never.
        scale_factor: Factor on the loss scale after a rollback, in (0, 1].
        restore_rng: Whether to restore the random state too, so that the same
            random numbers are drawn again.

    Raises:
        GuardConfigError: If an argument is out of range.
    """

    # After EMAHook (NORMAL), whose averages belong to a state, and before
    # CheckpointHook (VERY_LOW), which saves the state that came back.
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
        # Trouble in the first interval needs a state to go back to as well.
        self._keep(runner, runner.iter)

    def after_guard_event(self, runner: Runner, event: GuardEvent) -> None:
        if event.action is Action.ROLLBACK:
            # Hooks that receive the event later, such as those that dump the
            # batch, need the state as the update left it.
            self._event = event

    def after_audit(self, runner: Runner, audit: Audit) -> None:
        """Roll back at once from a bad state that an audit found."""
        guards = find_guards(runner)
        # A rollback changes the state of all optimizers, so all must allow it.
        if not guards or not all(map(rolls_back, guards.values())):
            return
        # An audit blames no optimizer, but a rollback is counted by one.
        event = audit.to_event().replace(optimizer=next(iter(guards)))
        try:
            self._roll_back(runner, event)
        except TrainingHalted as error:
            # StateAuditHook decides whether to halt, by its action.
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
        is_quiet = all(map(is_at_rest, find_guards(runner).values()))
        now = runner.iter + 1
        is_due = not self._kept or self._kept[-1].iter + self._interval <= now
        if is_quiet and is_due:
            self._keep(runner, now)

    def _keep(self, runner: Runner, iteration: int) -> None:
        """Keep the present state if it is finite; collective."""
        is_finite = not self._audit.check(kept_state(runner)).names
        # A rank that kept a state alone would later go back to another
        # iteration than the other ranks.
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
        """Restore an earlier state and report it.

        Raises:
            TrainingHalted: If there were ``max_rollbacks`` before.
            RollbackUnavailable: If there is no state to go back to.
        """
        guards = find_guards(runner)
        guard = guards[event.optimizer]
        if guard.state.num_rollbacks >= self._max_rollbacks:
            why = (
                f'Rolled back {self._max_rollbacks} times, which is '
                'max_rollbacks.'
            )
            raise TrainingHalted(*describe_halt(guard, event, why))
        kept = self._choose(runner, event)
        if kept is None:
            why = (
                'No state is kept that is older than the trouble (see '
                'RollbackHook.interval and num_kept), and the work dir '
                'has no clean checkpoint of before.'
            )
            raise RollbackUnavailable(*describe_halt(guard, event, why))
        # The factors of rollbacks multiply, because the previous rollback may
        # still lower the learning rate.
        factor = self._lr_factor * guard.state.lr_factor
        lr_return = 0.0
        if self._lr_recovery:
            lr_return = (1 - factor) / self._lr_recovery
        kept.restore(runner, factor, lr_return, self._restore_rng)
        for other in guards.values():
            self._lower(other.scaler)
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
        """Return the newest state from before the trouble, or None.

        The state of the last rollback is passed over if there is an older
        one, because the trouble came back after it. If no state in memory is
        old enough, the newest clean checkpoint is read.
        """
        # A streak of skips began before its last event.
        first_bad = event.since or event.iter
        if CAUSES[event.cause].is_gradual:
            wrapper = find_wrappers(runner)[event.optimizer]
            divergence = find_guards(runner)[event.optimizer].policy.divergence
            # Only the rule on divergence has a gradual cause.
            assert divergence is not None
            window = divergence.window
            # The median of the window is above the limit, so the run has
            # diverged for about half of the window already.
            first_bad -= window * wrapper._accumulative_counts
        older = [kept for kept in self._kept if kept.iter < first_bad]
        if len(older) > 1 and older[-1] is self._used:
            older.pop()
        # States of the trouble itself must not be restored later.
        self._kept = older
        if older:
            return older[-1]
        return newest_clean_state(runner, first_bad)

    def _lower(self, scaler: GuardedGradScaler) -> None:
        """Multiply the loss scale by ``scale_factor``, down to its floor."""
        if scaler.is_enabled():
            scale = scaler.get_scale() * self._scale_factor
            scale = max(scale, scaler.min_scale)
            scaler.load_state_dict(dict(scale=scale))


def describe_halt(
    guard: GuardProtocol, event: GuardEvent, why: str
) -> Tuple[GuardEvent, str]:
    """Return event and message of a halt in place of a rollback."""
    halted = event.replace(action=Action.HALT)
    return halted, f'{guard.halted(halted)}\n  {why}'


def is_at_rest(guard: GuardProtocol) -> bool:
    """Whether no window is open and the last update was not skipped."""
    state = guard.state
    commits = state.recent_commits
    # A skip that counts toward no limit is no part of a streak.
    is_last = not commits or commits[-1].update == state.num_updates
    return state.consecutive_skips == 0 and is_last and not guard.is_open


def rolls_back(guard: GuardProtocol) -> bool:
    """Whether the guard's policy asks for rollbacks."""
    return guard.policy.when_exhausted == 'rollback'
