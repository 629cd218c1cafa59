"""The hook that goes back to an earlier state where skipping does not help."""

import logging
from typing import Optional, Tuple

from mmengine.dist import all_gather_object
from mmengine.runner import Runner
from torch import nn

from mmnanguard._console import say
from mmnanguard._support.console_line import fit
from mmnanguard.core import (
    Action,
    GuardConfigError,
    GuardEvent,
    RollbackUnavailable,
    TrainingHalted,
)
from mmnanguard.core.causes import CAUSES
from mmnanguard.core.checks import check_value, is_count, is_finite_number
from mmnanguard.core.rows.guard_event import INITIAL_ORIGIN
from mmnanguard.core.rows.rollback_row import RollbackRow
from mmnanguard.numerics.base.rng_state import set_rng
from mmnanguard.numerics.checkpoints.state_audit import StateAudit
from mmnanguard.numerics.guard_protocol import GuardProtocol
from mmnanguard.numerics.update.loss_scale import GuardedGradScaler
from mmnanguard.registry import HOOKS

from .._shared.audit import Audit
from .._shared.find_guards import find_guards
from .._shared.guard_listener import GuardListener
from .._shared.halt import halt
from .._shared.hook_arguments import DataBatch, Outputs, Row
from .divergence_trial import fails_anyway
from .earlier_state import present_state, restore_together
from .kept_state import kept_state
from .kept_states import (
    BAD_FROM_THE_START,
    CANNOT_RESTORE,
    KeptStates,
    is_at_rest,
)
from .lower_rate import RateEvidence, is_of_rate, lowered
from .put_back import put_back
from .rising_losses import RisingLosses

__all__ = ['RollbackHook']


@HOOKS.register_module()
class RollbackHook(GuardListener):
    """Goes back to an earlier state where skipping does not help.

    The hook needs ``optim_wrapper.guard=dict(when_exhausted='rollback')``. It
    acts at the limit of skips, where the run diverges (``guard.divergence``),
    and where weights went bad outside any update, which an update or a
    ``StateAuditHook`` reports. It then restores the newest state that is older
    than the trouble: weights, buffers, the whole optimizer, averages of an
    ``EMAHook``, and the statistics of the guard's rules. Iteration, learning
    rate schedule, data order, loss scale and random state are not restored, so
    training moves past the offending batch.

    States are kept in host memory (pinned, if there is a GPU). Each takes as
    much memory as weights, optimizer state and averages together; a rollback
    needs room for one more. The hook keeps a state at the start of training,
    and then every ``interval`` iterations, outside of windows and of streaks
    of skips, if all of it is finite. This check takes one pass, one host read
    and one small collective. It keeps one as well when a
    ``StabilityMonitorHook`` begins to warn, unless ``num_kept`` is 1.

    If the trouble returns before a newer state was kept, the next rollback
    goes further back. The newest clean checkpoint that this run has written to
    the work dir is used if it is newer than the state in memory, or if there
    is none, but not under FSDP. After an explosion, it has to be 64 iterations
    older than the trouble. The run halts if nothing was committed since the
    state to go back to.

    Before it goes back for a streak without an explosion, the hook runs the
    last batch with the present and with earlier weights. If it is not finite
    with either, training goes on where it is.

    Before it goes back from a divergence, the hook runs the next three batches
    with the present and with earlier weights, without a trace. If the earlier
    weights do no better, the loss itself has risen, and training goes on.

    Args:
        interval: Number of iterations between two kept states.
        num_kept: Number of states that are kept.
        max_rollbacks: Number of rollbacks in the run, resumes included, after
            which training halts.
        lr_factor: Factor on the learning rates after a rollback, in (0, 1],
            if the run has diverged or losses or gradient norms had exploded.
            It is applied outside the schedulers.
        lr_recovery: Number of committed updates until the learning rates are
            back; None means never.
        scale_factor: Factor on the loss scale after a rollback, in (0, 1].
        restore_rng: Whether to restore the random state too, so that the same
            random numbers are drawn again.

    Raises:
        GuardConfigError: If an argument is out of range, and at the start of
            training with DeepSpeed, whose state the hook cannot put back.
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
        lr_recovery: Optional[int] = 10000,
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
        self._event: Optional[GuardEvent] = None

    def before_train(self, runner: Runner) -> None:
        if not isinstance(runner.model, nn.Module):
            raise GuardConfigError(
                'RollbackHook cannot put back the weights of an engine '
                '(DeepSpeed, ColossalAI), which may be on all ranks in parts, '
                'with copies in several precisions. Leave the hook and '
                "when_exhausted='rollback' out, and resume a halted run from "
                'its last clean checkpoint.'
            )
        self._audit = StateAudit(
            kept_state(runner), is_fresh=not runner._has_loaded
        )
        self._states = KeptStates(runner, self._num_kept)
        self._rises = RisingLosses(self._states)
        self._event = None
        self._has_begun = self._is_told = False

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DataBatch = None
    ) -> None:
        # Trouble in the first interval needs a state to go back to as well.
        # Hooks may prepare for the first iteration (schedule-free optimizers).
        if not self._has_begun:
            self._has_begun = True
            self._keep(runner, runner.iter)
        self._rises.try_batch(runner, batch_idx, data_batch)

    def after_guard_event(self, runner: Runner, event: GuardEvent) -> None:
        self._states.note_event(event)
        if event.action is Action.ROLLBACK:
            # Hooks that receive the event later, such as those that dump the
            # batch, need the state as the update left it.
            self._event = event

    def after_guard_row(self, runner: Runner, row: Row) -> None:
        self._states.note_row(row)

    def after_audit(self, runner: Runner, audit: Audit) -> None:
        """Roll back at once from a bad state that an audit found."""
        guards = find_guards(runner)
        # A rollback changes the state of all optimizers, so all must allow it.
        if not guards or not all(map(rolls_back, guards.values())):
            return
        if all(map(is_at_rest, guards.values())) and put_back(
            runner, audit, self._states.peek(audit.iter + 1)
        ):
            audit.is_handled = True
            return
        # An audit blames no optimizer, but a rollback is counted by one.
        event = audit.to_event().replace(optimizer=next(iter(guards)))
        try:
            self._roll_back(runner, event)
        except TrainingHalted as error:
            # StateAuditHook decides whether to halt, by its action.
            say(
                f'mmnanguard: no rollback: {error}',
                logging.ERROR,
                runner.logger,
            )
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
                if self._fails_anyway(runner, event, batch_idx, data_batch):
                    self._go_on(
                        runner,
                        event,
                        'the last batch is not finite with earlier weights '
                        'either',
                    )
                else:
                    self._roll_back(runner, event)
            except TrainingHalted as error:
                halt(runner, error)
            return
        is_quiet = all(map(is_at_rest, find_guards(runner).values()))
        # A state of the trouble would push out an older one.
        is_quiet = is_quiet and self._rises.trial is None
        if is_quiet and self._states.is_due(runner, self._interval):
            self._keep(runner, runner.iter + 1)
        self._rises.look(runner)

    def _keep(self, runner: Runner, iteration: int) -> None:
        """Keep the present state if it is finite; collective."""
        is_finite = not self._audit.check(kept_state(runner)).names
        # A rank that kept a state alone would later go back to another
        # iteration than the other ranks.
        if not all(all_gather_object(is_finite)):
            story = (
                f'mmnanguard: iteration {iteration}: weights, buffers, '
                'averages or optimizer state are not finite: not kept as a '
                'state to go back to'
            )
            say(story, logging.ERROR, runner.logger)
            return
        state = present_state(runner, iteration)
        self._states.add(state)
        # Said once, with the first state.
        if not self._is_told and state.left_out:
            self._is_told = True
            names = ', '.join(state.left_out[:5])
            story = f'a rollback will not restore {names}: it cannot be copied'
            say(f'mmnanguard: {story}', logging.WARNING, runner.logger)

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
        if event.origin == INITIAL_ORIGIN:
            raise RollbackUnavailable(
                *describe_halt(guard, event, BAD_FROM_THE_START)
            )
        facts = CAUSES[event.cause]
        evidence = RateEvidence.of(event, guard.state)
        if not evidence and is_of_rate(guard, event):
            self._go_on(
                runner,
                event,
                'the updates between the rejected ones were sound, and '
                'neither losses nor gradient norms had exploded',
            )
            return
        # A streak of skips began before its last event.
        first_bad = event.since or event.iter
        assert first_bad is not None
        if facts.is_gradual:
            first_bad = self._rises.first_bad(runner, event.optimizer)
        kept, why = self._states.choose(
            runner,
            first_bad,
            is_bad=facts.ends_run and not facts.is_gradual,
            is_suspect=bool(evidence),
        )
        before = present_state(runner, event.iter)
        if kept is not None and not restore_together(runner, kept, before):
            why = CANNOT_RESTORE.format(kept.iter)
            kept = None
        if kept is None:
            raise RollbackUnavailable(*describe_halt(guard, event, why))
        for name, other in guards.items():
            state, other.clip_rule = kept.rules[name]
            lr = other.state.lr_factor, other.state.lr_return
            if other is guard and evidence.blames_rate:
                lr = lowered(lr[0], self._lr_factor, self._lr_recovery)
            # Only statistics are restored. Counters go on, because the
            # rejected updates did happen and max_rollbacks has to be reached.
            other.state = other.state.rolled_back(state, *lr)
            self._lower(other.scaler)
        if self._restore_rng and kept.rng is not None:
            set_rng(kept.rng)
        self._states.note_restored(runner, kept)
        self._rises.end_trial()
        words = ''
        # Nothing is to be explained if no lower rate is allowed.
        if self._lr_factor < 1:
            words = evidence.words(self._lr_recovery)
        row = RollbackRow(
            id=event.id,
            iter=event.iter,
            to=kept.iter,
            path=kept.path,
            num_rollbacks=guard.state.num_rollbacks,
            lr_factor=guard.state.lr_factor,
            loss_scale=guard.scaler.get_scale(),
            evidence=words,
        )
        self._report(runner, row)

    def _fails_anyway(
        self,
        runner: Runner,
        event: GuardEvent,
        batch_idx: int,
        data_batch: DataBatch,
    ) -> bool:
        """Whether the last batch of a streak would fail after a rollback.

        Collective.
        """
        guard = find_guards(runner)[event.optimizer]
        facts = CAUSES[event.cause]
        # A replay has no loss scale. Bad weights are no question of a batch.
        has_scale = facts.is_scaled and guard.scaler.is_enabled()
        if facts.ends_run or not facts.is_replayable or has_scale:
            return False
        if guard.state.num_rollbacks >= self._max_rollbacks:
            return False
        if not self._states.has_commits(runner):
            return False
        if RateEvidence.of(event, guard.state):
            return False
        earlier = self._states.peek(event.since or event.iter or 0)
        return earlier is not None and fails_anyway(
            runner, batch_idx, data_batch, earlier
        )

    def _go_on(self, runner: Runner, event: GuardEvent, why: str) -> None:
        """Begin to count anew where training is, in place of a rollback."""
        guard = find_guards(runner)[event.optimizer]
        guard.state = guard.state.without_skips()
        self._states.note_going_on(runner)
        num = f'{guard.state.num_rollbacks} of {self._max_rollbacks}'
        line = fit(
            f'Iter {event.iter}: training does not go back ({num} times)',
            [why, ''],
        )
        say(line, logging.WARNING, runner.logger)

    def _report(self, runner: Runner, row: RollbackRow) -> None:
        """Log a rollback, and hand its row to all hooks."""
        say(row.line(self._max_rollbacks), logging.WARNING, runner.logger)
        runner.call_hook('after_guard_row', row=row.to_row())

    def _lower(self, scaler: GuardedGradScaler) -> None:
        """Multiply the loss scale by ``scale_factor``, down to its floor."""
        if scaler.is_enabled():
            scale = scaler.get_scale() * self._scale_factor
            scale = max(scale, scaler.min_scale)
            scaler.load_state_dict(dict(scale=scale))


def describe_halt(
    guard: GuardProtocol, event: GuardEvent, why: str
) -> Tuple[GuardEvent, str, str]:
    """Return event, message and cause of a halt in place of a rollback."""
    halted = event.replace(action=Action.HALT)
    error = guard.halted(halted)
    return halted, f'{error}\n  {why}', error.cause


def rolls_back(guard: GuardProtocol) -> bool:
    """Whether the guard's policy asks for rollbacks."""
    return guard.policy.when_exhausted == 'rollback'
