"""The hook that looks at the inputs before the model does."""

from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.runner import Runner
from torch import Tensor, nn

from mmnanguard.core import (
    Action,
    Cause,
    GuardConfigError,
    GuardEvent,
    TrainingHalted,
)
from mmnanguard.core.rows.input_row import InputRow
from mmnanguard.numerics.guard_protocol import GuardProtocol
from mmnanguard.registry import HOOKS

from .._shared.find_guards import find_guards
from .._shared.halt import halt
from .._shared.hook_arguments import DataBatch, Outputs
from .._shared.patches import PatchingHook
from .._shared.roles import EventSource, ModelChanger, has_hook
from .bad_inputs import gather_bad_inputs
from .input_look import InputFlags, InputLook, bad_samples
from .input_policy import InputPolicy

__all__ = ['InputGuardHook']


@HOOKS.register_module()
class InputGuardHook(PatchingHook, ModelChanger):
    """Looks at the inputs after the data preprocessor, before the model.

    In training only. Flags stay on the device until the update's one host
    read. If they are bad anywhere, the update is rejected on all ranks with
    the cause 'input_nonfinite', and a row of kind 'input' and a console line
    name the samples of all ranks, and the keys. A window of gradient
    accumulation is rejected as a whole; the samples of its bad micro-batches
    are named, and all samples into which the preprocessor mixed a bad one.
    The model does see what is rejected: one that raises when it meets NaN,
    as Hungarian matchers do, needs 'sanitize'. With several optimizers all
    reject that train in that iteration.

    'sanitize' trains on and needs no guard; what it mended is told every
    ``interval`` iterations and after the last.

    What is looked at and how samples are named: :class:`InputLook`.

    Args:
        action: 'reject' the update; 'sanitize' the numbers and train on
            them; 'halt' the run, on all ranks.
        keys: Parts of the preprocessor's output to look at, such as
            'inputs' or 'data_samples.gt_instances.bboxes', with all that is
            below them; None means all. Leave out what may be infinite on
            purpose, such as the depth of the sky.
        nan: What 'sanitize' puts for NaN.
        posinf: For Inf. None means the largest number of the dtype, as in
            ``torch.nan_to_num``: such an input overflows in the first
            convolution.
        neginf: For -Inf. None means the most negative number of the dtype.
        interval: In iterations, from one report of 'sanitize' to the next.
            Flags and names of samples are kept for so long.

    Raises:
        GuardConfigError: For an argument that is not allowed. At the start
            of training: for a model without a data preprocessor, for
            'reject' and 'halt' without a guard, and for 'halt' without
            ``NanGuardHook``. In the first iteration: for keys that nothing
            has.
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
        # Of the open window of each guard, with the facts that it was told.
        self._windows: Dict[str, List[Tuple[InputFlags, Tensor]]] = {}
        self._mended: List[InputFlags] = []  # of the interval
        self._halt: Optional[TrainingHalted] = None
        self._has_looked = self._is_on = False

    def before_run(self, runner: Runner) -> None:
        super().before_run(runner)
        if not self._policy.mends and not has_hook(runner, EventSource):
            self._miss_events(runner)

    def before_train(self, runner: Runner) -> None:
        self._model = getattr(runner.model, 'module', runner.model)
        preprocessor = getattr(self._model, 'data_preprocessor', None)
        if not isinstance(preprocessor, nn.Module):
            raise GuardConfigError(
                f'InputGuardHook: {type(self._model).__name__} has no '
                'data_preprocessor whose output could be looked at.'
            )
        self._guards = find_guards(runner)
        if not self._guards and not self._policy.mends:
            raise GuardConfigError(
                f'InputGuardHook: action={self._policy.action!r} needs an '
                'optimizer wrapper that can reject an update, '
                'mmnanguard.NanGuardOptimWrapper or '
                "mmnanguard.NanGuardAmpOptimWrapper; action='sanitize' needs "
                'none.'
            )
        self._windows, self._mended, self._halt = {}, [], None
        self._iter, self._since = runner.iter, runner.iter + 1
        self._batch_idx, self._is_on = 0, False
        self._batch: DataBatch = None
        self._runner, self._preprocessor = runner, preprocessor
        self._handle = preprocessor.register_forward_hook(self._look)
        self.patches.remember(self._remove_look)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DataBatch = None
    ) -> None:
        for name, guard in self._guards.items():
            if not guard.is_open:  # its window is over, or has not begun
                self._forget(name, guard)
        self._iter = runner.iter + 1
        self._batch_idx, self._batch = batch_idx, data_batch
        self._is_on = True
        # Anew, to come after those that are there for one iteration.
        self._handle.remove()
        self._handle = self._preprocessor.register_forward_hook(self._look)

    @torch.compiler.disable
    def _look(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Flag, or mend, what the model is about to get; no sync."""
        policy = self._policy
        if not self._model.training or not (self._is_on or policy.mends):
            return output
        look = InputLook(
            output,
            args[0] if args else self._batch,
            self._batch_idx,
            policy,
            get_rank() if get_world_size() > 1 else None,
        )
        if not self._has_looked:
            self._has_looked = True
            policy.check_found(look.keys)
        if look.flags is None or not self._is_on:
            return look.output
        if policy.mends:
            self._mended.append(look.flags)
            return look.output
        flag = look.flags.is_bad.any()
        for name, guard in self._guards.items():
            guard.add_fact('input', flag)
            self._windows.setdefault(name, []).append((look.flags, flag))
        return output

    def after_guard_event(self, runner: Runner, event: GuardEvent) -> None:
        """Name the samples; syncs, and is collective."""
        self._is_on = False  # what comes now is a replay
        if event.cause is not Cause.INPUT_NONFINITE:
            return
        window = self._windows.get(event.optimizer, [])
        bad = gather_bad_inputs(bad_samples([flags for flags, _ in window]))
        if bad is None:  # flagged by somebody else
            return
        record = bad.record(event.id, self._policy.action, event.iter)
        self._tell(runner, record)
        if self._policy.action == 'halt':
            is_left_out = event.action is Action.STEP
            subject = record.subject(with_ranks=get_world_size() > 1)
            self._halt = TrainingHalted(
                event,
                f'mmnanguard: halted at iteration {event.iter}: the input is '
                f'not finite in {subject}; InputGuardHook has '
                "action='halt'. Nothing was updated"
                f'{" from it" if is_left_out else ""}. Mend the samples, or '
                "set action='reject' or 'sanitize'.",
            )

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DataBatch = None,
        outputs: Outputs = None,
    ) -> None:
        self._is_on, self._batch = False, None
        if not self._has_looked and outputs:
            self._has_looked = True
            runner.logger.error(
                f'mmnanguard: InputGuardHook: {type(self._model).__name__}.'
                'train_step does not call the data preprocessor, so that no '
                'input is looked at'
            )
        if self._policy.mends and self._iter % self._policy.interval == 0:
            self._report(runner)
        if self._halt is not None:  # after all consequences
            halt(runner, self._halt)

    def after_train(self, runner: Runner) -> None:
        if self._policy.mends:
            self._report(runner)

    def _report(self, runner: Runner) -> None:
        """Tell what was mended since the last time; syncs, and is
        collective: all ranks are at the same iteration.
        """
        bad = gather_bad_inputs(bad_samples(self._mended))
        since, self._since, self._mended = self._since, self._iter + 1, []
        if bad is None:
            return
        run = next((guard.run for guard in self._guards.values()), '')
        id_ = f'{run}-{self._iter}-input'
        action = self._policy.action
        self._tell(runner, bad.record(id_, action, self._iter, since))

    @staticmethod
    def _tell(runner: Runner, record: InputRow) -> None:
        with_ranks = get_world_size() > 1
        runner.logger.warning(record.line(with_ranks))
        runner.call_hook('after_guard_row', row=record.to_row())

    def _remove_look(self) -> None:
        self._handle.remove()

    def _miss_events(self, runner: Runner) -> None:
        cure = (
            'without NanGuardHook, which hands out the events. Add '
            "default_hooks=dict(nan_guard=dict(type='mmnanguard."
            "NanGuardHook'))."
        )
        if self._policy.action == 'halt':
            raise GuardConfigError(f'InputGuardHook cannot halt {cure}')
        runner.logger.error(
            f'mmnanguard: InputGuardHook names no samples {cure}'
        )

    def _forget(self, name: str, guard: GuardProtocol) -> None:
        """Take back what was no update's: that guard has trained nothing on
        those inputs.
        """
        own = {id(flag) for _, flag in self._windows.pop(name, ())}
        if own and 'input' in guard.facts:
            guard.facts['input'] = [
                flag for flag in guard.facts['input'] if id(flag) not in own
            ]
