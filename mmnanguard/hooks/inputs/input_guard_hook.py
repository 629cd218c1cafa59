"""The hook that checks the inputs before the model sees them."""

import logging
from typing import Collection, Dict, Iterable, List, Optional, Sequence, Tuple

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.runner import Runner
from torch import nn

from mmnanguard._console import say
from mmnanguard.core import (
    Action,
    Cause,
    GuardConfigError,
    GuardEvent,
    TrainingHalted,
)
from mmnanguard.core.causes import CAUSES
from mmnanguard.core.rows.input_row import InputRow
from mmnanguard.numerics.guard_protocol import GuardProtocol
from mmnanguard.registry import HOOKS

from .._shared.find_guards import find_guards
from .._shared.halt import halt
from .._shared.hook_arguments import DataBatch, Outputs
from .._shared.patches import PatchingHook
from .._shared.roles import EventSource, ModelChanger, SampleWitness, has_hook
from .bad_inputs import gather_bad_inputs
from .input_check import CheckedWindow, InputCheck, InputFlags, bad_samples
from .input_policy import InputPolicy
from .masked_keys import MaskedKeys, masked_story

__all__ = ['InputGuardHook']


@HOOKS.register_module()
class InputGuardHook(PatchingHook, ModelChanger, SampleWitness):
    """Checks the inputs after the data preprocessor, before the model.

    In training only. Flags stay on the device until the update's one host
    read. If inputs are bad on any rank, the update is rejected on all ranks
    with the cause 'input_nonfinite'; a row of kind 'input' and a console line
    name the bad samples of all ranks, and the keys. A window of gradient
    accumulation is rejected as a whole. The row then names the samples of its
    bad micro-batches, and all samples into which the preprocessor mixed a bad
    sample. The model does see rejected inputs: a model that raises an error
    for NaN, as Hungarian matchers do, needs 'sanitize'. With several
    optimizers, all those that train in the iteration reject their update.

    NaN in the inputs may be there on purpose: targets of 3D detection hold it
    where nothing was measured, and the loss leaves it out. 'explain' rejects
    nothing by itself and names the inputs once an update went bad. 'reject'
    says in capitals that a model masks a key once three rejected updates had
    finite gradients beside it; without ``keys``, it rejects for this key no
    more.

    'sanitize' trains on and needs no guard. Every ``interval`` iterations and
    after the last, it reports the samples that it has changed.

    :class:`InputCheck` documents which parts are checked and how samples are
    named.

    Args:
        action: 'reject' the update; 'sanitize' the numbers and train on
            them; 'halt' the run, on all ranks; 'explain' an update that was
            rejected for another reason, such as a NaN loss.
        keys: Parts of the preprocessor's output to check, such as 'inputs' or
            'data_samples.gt_instances.bboxes', with all parts below them;
            None means all. Leave out parts that may be infinite on purpose,
            such as the depth of the sky.
        nan: Number with which 'sanitize' replaces NaN.
        posinf: Number that replaces Inf. None means the largest number of the
            dtype, as in ``torch.nan_to_num``: such an input overflows in the
            first convolution.
        neginf: Number that replaces -Inf. None means the most negative number
            of the dtype.
        interval: Number of iterations from one report of 'sanitize' to the
            next. Flags and names of samples are kept for so long.

    Raises:
        GuardConfigError: For an argument that is not allowed. At the start
            of training: for a model without a data preprocessor, for
            'reject' and 'halt' without a guard, and for 'halt' without
            ``NanGuardHook``. In the first iteration: for keys that select no
            part.
    """

    # After the hooks of a fire drill, before the replays of an autopsy.
    priority = 'BELOW_NORMAL'

    def __init__(
        self,
        action: str = 'reject',
        keys: Optional[Sequence[str]] = None,
        nan: float = InputPolicy.nan,
        posinf: Optional[float] = InputPolicy.posinf,
        neginf: Optional[float] = InputPolicy.neginf,
        interval: int = InputPolicy.interval,
    ) -> None:
        super().__init__()
        self._policy = InputPolicy(action, keys, nan, posinf, neginf, interval)
        self._windows: Dict[str, CheckedWindow] = {}
        # Checks of the current interval of 'sanitize'.
        self._sanitized: List[InputFlags] = []
        self._halt: Optional[TrainingHalted] = None
        self._has_checked = False
        self._masked = MaskedKeys()
        # True from the start of an iteration until its update is judged: later
        # passes of the iteration are replays.
        self._is_on = False

    def before_run(self, runner: Runner) -> None:
        """Report that ``NanGuardHook``, which hands out events, is missing."""
        super().before_run(runner)
        # 'sanitize' reports by itself.
        if not self._policy.sanitizes and not has_hook(runner, EventSource):
            self._report_missing_events(runner)

    def before_train(self, runner: Runner) -> None:
        """Check the output of the data preprocessor from now on."""
        self._model = getattr(runner.model, 'module', runner.model)
        preprocessor = getattr(self._model, 'data_preprocessor', None)
        if not isinstance(preprocessor, nn.Module):
            raise GuardConfigError(
                f'InputGuardHook: {type(self._model).__name__} has no '
                'data_preprocessor whose output could be looked at.'
            )
        self._guards = find_guards(runner)
        if not self._guards and not self._policy.sanitizes:
            raise GuardConfigError(
                f'InputGuardHook: action={self._policy.action!r} needs an '
                'optimizer wrapper that can reject an update, '
                'such as mmnanguard.NanGuardOptimWrapper; '
                "action='sanitize' needs none."
            )
        # Training may begin again in the same process.
        self._windows, self._sanitized, self._halt = {}, [], None
        self._masked = MaskedKeys()
        self._iter, self._since = runner.iter, runner.iter + 1
        self._batch_idx, self._is_on = 0, False
        self._batch: DataBatch = None
        self._preprocessor = preprocessor
        self._handle = preprocessor.register_forward_hook(self._check_output)
        self.patches.remember(self._remove_handle)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DataBatch = None
    ) -> None:
        """Prepare for the checks of an iteration."""
        for name, guard in self._guards.items():
            # The window has ended, or this guard did not train in it.
            if not guard.is_open:
                self._forget(name, guard)
        self._iter = runner.iter + 1
        self._batch_idx, self._batch = batch_idx, data_batch
        self._is_on = True
        # PyTorch calls forward hooks in the order of their registration.
        # Register again, to come after the hook of a fault of this iteration.
        self._handle.remove()
        self._handle = self._preprocessor.register_forward_hook(
            self._check_output
        )

    # The check keeps flags for later iterations: Dynamo must not trace it into
    # a compiled model.
    @torch.compiler.disable
    def _check_output(
        self, module: nn.Module, args: Tuple[object, ...], output: object
    ) -> object:
        """Flag or sanitize the inputs that the model is about to get.

        A forward hook of the data preprocessor; no sync.
        """
        policy = self._policy
        # A replay gets sanitized inputs too, or it would not repeat the pass.
        if not self._model.training or not (self._is_on or policy.sanitizes):
            return output
        # Without `args`, the batch was given by keyword, and forward hooks do
        # not receive keywords.
        batch = args[0] if args else self._batch
        rank = get_rank() if get_world_size() > 1 else None
        masked: Collection[str] = ()
        if policy.keys is None:
            masked = self._masked.proven
        check = InputCheck(
            output, batch, self._batch_idx, policy, rank, masked
        )
        if not self._has_checked:
            self._has_checked = True
            policy.check_keys(check.keys)
        if check.flags is None or not self._is_on:
            return check.output
        if policy.sanitizes:
            self._sanitized.append(check.flags)
            return check.output
        # Any of the guards may train on this batch; those that do not forget
        # it in the next iteration.
        for name, guard in self._guards.items():
            window = self._windows.setdefault(name, CheckedWindow())
            window.checks.append(check.flags)
            if policy.rejects and check.fact is not None:
                guard.add_fact('input', check.fact)
                window.facts.append(check.fact)
        return output

    def bad_samples(self, event: GuardEvent) -> Collection[str]:
        """Return the samples whose input is not finite; syncs."""
        window = self._windows.get(event.optimizer)
        is_input = event.cause is Cause.INPUT_NONFINITE
        if window is None or not (is_input or self._explains(event)):
            return ()
        masked: Collection[str] = ()
        if not is_input:
            masked = self._masked.proven | self._masked.seen_in_commits()
        names: List[str] = []
        for key, samples in bad_samples(window.checks).items():
            if key not in masked:
                names.extend(samples)
        return names

    def after_guard_event(self, runner: Runner, event: GuardEvent) -> None:
        """Report the bad samples of a rejected update; syncs, collective."""
        # All passes until the next iteration are replays.
        self._is_on = False
        # Of routine overflows, too: a rejected window proves no mask.
        window = self._windows.pop(event.optimizer, CheckedWindow())
        is_input = event.cause is Cause.INPUT_NONFINITE
        if not is_input and not self._explains(event):
            return
        bad = gather_bad_inputs(bad_samples(window.checks))
        # Other code can flag an input with `guard.add_fact` as well.
        if bad is None:
            return
        action = self._policy.action
        usual: Tuple[str, ...] = ()
        if not is_input:
            action, usual = 'explain', self._usual(bad.keys)
        record = bad.record(event.id, action, event.iter, usual=usual)
        self._guards[event.optimizer].explain(event, record)
        self._report_row(runner, record)
        if not is_input:
            return
        new = self._masked.note_rejected(event, bad.keys)
        if new:
            is_asked = self._policy.keys is not None
            say(
                masked_story(sorted(new), is_asked),
                logging.WARNING,
                runner.logger,
            )
        if self._policy.action == 'halt':
            self._halt = halted_by(event, record)

    def _explains(self, event: GuardEvent) -> bool:
        """Whether bad inputs may explain the event of an update."""
        return (
            not self._policy.sanitizes
            and not event.is_routine
            and CAUSES[event.cause].is_of_batch
        )

    def _usual(self, keys: Iterable[str]) -> Tuple[str, ...]:
        """Return the keys that committed updates had, too; collective."""
        usual = set(self._masked.proven)
        for rank_keys in all_gather_object(self._masked.seen_in_commits()):
            usual |= rank_keys
        return tuple(key for key in keys if key in usual)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DataBatch = None,
        outputs: Outputs = None,
    ) -> None:
        """Report at the end of an interval; halt if an event asked for it."""
        # The batch must not stay alive during validation.
        self._is_on, self._batch = False, None
        if not self._has_checked and outputs:
            self._has_checked = True
            say(
                f'mmnanguard: InputGuardHook: {type(self._model).__name__}.'
                'train_step does not call the data preprocessor, so that no '
                'input is looked at',
                logging.ERROR,
                runner.logger,
            )
        policy = self._policy
        if policy.sanitizes and self._iter % policy.interval == 0:
            self._report_sanitized(runner)
        # After the report, and after all other hooks have had the event.
        if self._halt is not None:
            halt(runner, self._halt)

    def after_train(self, runner: Runner) -> None:
        """Report the samples sanitized since the last interval."""
        if self._policy.sanitizes:
            self._report_sanitized(runner)

    def _report_sanitized(self, runner: Runner) -> None:
        """Report the samples sanitized since the last report.

        Syncs, and is collective: all ranks are at the same iteration.
        """
        bad = gather_bad_inputs(bad_samples(self._sanitized))
        since, self._since, self._sanitized = self._since, self._iter + 1, []
        if bad is None:
            return
        # Guards of a run share its id; without a guard there is none.
        run = ''
        if self._guards:
            run = next(iter(self._guards.values())).run
        id_ = f'{run}-{self._iter}-input'
        action = self._policy.action
        self._report_row(runner, bad.record(id_, action, self._iter, since))

    @staticmethod
    def _report_row(runner: Runner, record: InputRow) -> None:
        with_ranks = get_world_size() > 1
        say(record.line(with_ranks), logging.WARNING, runner.logger)
        runner.call_hook('after_guard_row', row=record.to_row())

    def _remove_handle(self) -> None:
        # `patches` gets this method and not `handle.remove`, because each
        # iteration has another handle.
        self._handle.remove()

    def _report_missing_events(self, runner: Runner) -> None:
        reason = (
            'without NanGuardHook, which hands out the events. Add '
            "default_hooks=dict(nan_guard=dict(type='mmnanguard."
            "NanGuardHook'))."
        )
        if self._policy.action == 'halt':
            raise GuardConfigError(f'InputGuardHook cannot halt {reason}')
        # No exception for 'reject': the guard rejects without the hook.
        say(
            f'mmnanguard: InputGuardHook names no samples {reason}',
            logging.ERROR,
            runner.logger,
        )

    def _forget(self, name: str, guard: GuardProtocol) -> None:
        """Drop checks of a guard that has not trained on their inputs."""
        window = self._windows.pop(name, CheckedWindow())
        # A rejected window is not here any more: its event has taken it.
        if window.checks and not self._policy.sanitizes:
            self._masked.note_commit(window.checks)
        # By identity, as `==` of tensors would sync.
        dropped = set(map(id, window.facts))
        if dropped and 'input' in guard.facts:
            # Other code may have added facts of the same name.
            guard.facts['input'] = [
                fact
                for fact in guard.facts['input']
                if id(fact) not in dropped
            ]


def halted_by(event: GuardEvent, record: InputRow) -> TrainingHalted:
    """Return the error that ends training because of bad inputs.

    Args:
        event: Event of the update.
        record: Row with the bad samples.
    """
    subject = record.subject(with_ranks=get_world_size() > 1)
    # A committed update has left out the bad micro-batches.
    extent = ' from it' if event.action is Action.STEP else ''
    return TrainingHalted(
        event,
        f'mmnanguard: halted at iteration {event.iter}: the input is '
        f'not finite in {subject}; InputGuardHook has '
        f"action='halt'. Nothing was updated{extent}. Mend the samples, or "
        "set action='reject' or 'sanitize'.",
    )
