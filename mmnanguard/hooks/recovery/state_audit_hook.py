"""The hook that finds non-finite state before it gets into a checkpoint."""

import logging
from functools import partial
from typing import Dict, Optional, Tuple

from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.runner import Runner

from mmnanguard._console import say
from mmnanguard.core import BadTensor, TrainingHalted
from mmnanguard.core.checks import check_value, is_count
from mmnanguard.core.rows.event_words import stepper_in_words
from mmnanguard.numerics.checkpoints.state_audit import AuditResult, StateAudit
from mmnanguard.registry import HOOKS

from .._shared.audit import Audit
from .._shared.find_guards import (
    find_guards,
    find_wrappers,
    how_to_guard_wrapper,
    is_within_window,
    longest_window,
)
from .._shared.halt import halt
from .._shared.hook_arguments import DataBatch, Outputs
from .._shared.patches import PatchingHook
from .._shared.roles import origin_of
from .kept_state import kept_state
from .pointers import LAST_CLEAN, read_pointer
from .safe_checkpoints import SafeCheckpoints

__all__ = ['StateAuditHook']

ACTIONS = ('halt', 'warn')


@HOOKS.register_module()
class StateAuditHook(PatchingHook):
    """Audits the state of the run for NaN and Inf.

    The state is all that the run keeps: weights, buffers, the optimizer's
    state and averages (``EMAHook``, ``MeanTeacherHook``).

    An audit takes place every ``interval`` iterations and before each
    checkpoint. It takes one pass over the state, and one host read if all is
    well. With several ranks an exchange gives all ranks the same result. No
    checkpoint is written while the state is bad, see
    :class:`SafeCheckpoints`.

    Bad state is reported in one console line and a row of kind 'audit', and
    every hook that has a method ``after_audit(runner, audit)`` receives the
    :class:`Audit`. A hook that repairs the state sets ``audit.is_handled``, on
    all ranks, and training goes on. The checkpoint that was due is left out
    all the same.

    A tensor that is not trained and holds Inf when training begins is taken
    for a mask: Inf in it is not bad.

    Args:
        interval: Number of iterations between two audits. With gradient
            accumulation an audit waits for the end of its window. None means
            audits before checkpoints only.
        action: Reaction to bad state: 'halt' raises ``TrainingHalted`` on all
            ranks, 'warn' continues training without checkpoints.

    Raises:
        GuardConfigError: If an argument is not allowed.
    """

    # After CheckpointHook. Its checkpoints of this iteration have been audited
    # then, and the audit by interval can be left out.
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
        self._num_reported = 0
        self._due: Optional[int] = None

    def before_train(self, runner: Runner) -> None:
        # NaN in a model that was built just now is there by design. After a
        # load, it may be damage.
        self._audit = StateAudit(
            kept_state(runner), is_fresh=not runner._has_loaded
        )
        SafeCheckpoints(runner, self.patches, partial(self._is_clean, runner))

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DataBatch = None
    ) -> None:
        # Noted here, because a checkpoint at the end of an epoch comes after
        # runner.iter has moved on.
        self._iter, self._epoch = runner.iter + 1, runner.epoch + 1

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DataBatch = None,
        outputs: Outputs = None,
    ) -> None:
        if self._interval and self.every_n_train_iters(runner, self._interval):
            self._due = self._due or self._iter
        if self._due is None:
            return
        # A window that is bypassed never ends.
        is_late = self._iter > self._due + 2 * longest_window(runner)
        if is_late or not is_within_window(runner):
            self._due = None
            # A checkpoint of this iteration may have been audited already.
            if self._last_iter != self._iter:
                self._is_clean(runner)

    def _is_clean(
        self,
        runner: Runner,
        checkpoint: Optional[str] = None,
        is_collective: bool = True,
    ) -> bool:
        """Audit the state, and report and handle bad state.

        Args:
            runner: The runner of the training.
            checkpoint: Name of the checkpoint that is due, if any.
            is_collective: Whether all ranks make this call. If not, the audit
                concerns the calling rank alone.

        Raises:
            TrainingHalted: If the state is bad, 'halt' is the action, and no
                hook has handled it.
        """
        results = [self._audit.check(kept_state(runner))]
        ranks = [get_rank()]
        # With sharded parameters, a rank sees only a part of the state.
        if is_collective and get_world_size() > 1:
            results = all_gather_object(results[0])
            ranks = list(range(len(results)))
        if is_collective:
            self._last_iter = self._iter
        bad: Dict[int, AuditResult] = {}
        for rank, result in zip(ranks, results):
            if result.names:
                bad[rank] = result
        if not bad:
            return True
        audit = self._describe(runner, bad, checkpoint)
        say(audit.line(), logging.ERROR, runner.logger)
        runner.call_hook('after_guard_row', row=audit.to_row())
        # A rank alone must neither repair nor halt, since the others would
        # wait for it. The verdict on an open window may still restore the
        # state.
        if not is_collective or is_within_window(runner):
            return False
        runner.call_hook('after_audit', audit=audit)
        if self._action == 'halt' and not audit.is_handled:
            last_clean = read_pointer(runner.work_dir, LAST_CLEAN)
            names = [name for _, name in audit.names]
            origin = origin_of(runner, names)
            # The file was clean when it was written, and is bad now.
            if last_clean and last_clean in origin:
                last_clean = None
            if not origin and 'weights' in audit.where:
                origin = step_at_fault(runner)
            story = audit.halt_story(last_clean, unguarded(runner), origin)
            halt(runner, TrainingHalted(audit.to_event(), story))
        return False

    def _describe(
        self,
        runner: Runner,
        bad: Dict[int, AuditResult],
        checkpoint: Optional[str],
    ) -> Audit:
        """Return the audit that joins the bad results, given by rank."""
        # Dictionaries, because replicas report the same names on all ranks.
        names: Dict[Tuple[str, str], None] = {}
        for result in bad.values():
            names.update(dict.fromkeys(result.names))
        tensors: Dict[Tuple[str, str], BadTensor] = {}
        # In reverse, so that the details are those of the lowest rank.
        for result in reversed(list(bad.values())):
            for tensor in result.tensors:
                tensors[tensor.tensor, tensor.name] = tensor
        self._num_reported += 1
        audit = Audit(
            iter=self._iter,
            epoch=self._epoch,
            names=tuple(names),
            tensors=tuple(tensors.values()),
            ranks=tuple(bad),
            checkpoint=checkpoint,
        )
        # The guards name the run: without a guard it has no name.
        guards = list(find_guards(runner).values())
        if guards:
            audit.run, audit.attempt = guards[0].run, guards[0].attempt
        audit.id = f'{audit.run}-{self._iter}-audit.{self._num_reported}'
        return audit


def unguarded(runner: Runner) -> str:
    """Return which updates are not guarded, and how to; '' if all are."""
    guards = find_guards(runner)
    for name, wrapper in find_wrappers(runner).items():
        if name not in guards:
            how = how_to_guard_wrapper(wrapper)
            return f"The updates of optimizer '{name}' are not guarded. {how}"
    return ''


def step_at_fault(runner: Runner) -> str:
    """Return the words on the last step, if it spoiled weights; syncs."""
    for guard in find_guards(runner).values():
        spoiler = guard.params.find_spoiler(guard.params)
        if spoiler is not None:
            step = spoiler.describe_step()
            return (
                f'what the step of iteration {step["iter"]} '
                f'({stepper_in_words(step)}) made of finite gradients'
            )
    return ''
