"""The state that a guarded optimizer wrapper keeps as long as it lives."""

import logging
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    List,
    Optional,
    Set,
    Tuple,
    Type,
)

from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.optim import Optimizer

from mmnanguard._console import say
from mmnanguard.core import (
    Action,
    BadTensor,
    ClipRule,
    GuardEvent,
    GuardPolicy,
    GuardState,
    NoClip,
    Observation,
    TrainingHalted,
    Verdict,
)
from mmnanguard.core.rows.build_event import build_event
from mmnanguard.core.rows.row_record import RowRecord
from mmnanguard.numerics import GuardedGradScaler
from mmnanguard.numerics.base.shards import Placement
from mmnanguard.numerics.guard_protocol import GuardProtocol
from mmnanguard.numerics.snapshot.change_tracker import OtherOptimizers, ignore
from mmnanguard.numerics.update.blame import TensorNames

from .clip_grad import UserClip, build_clip, load_clip
from .guarded_params import GuardedParams
from .micro_batches import MicroBatches
from .refusals import refuse_closure
from .streak import Streak
from .window import Passes, Windows

__all__ = ['Guard']


class Guard(Passes):
    """The rules, the counters and the present window of one optimizer.

    A window opens at the first ``optim_context`` (or ``backward``) after a
    step, and ends with the next step. With gradient accumulation it spans
    several forward passes. Everything that lives for one window is in
    ``window``, everything else here.

    Args:
        optimizer: The optimizer whose updates are guarded.
        config: ``optim_wrapper.guard``.
        clip_grad: ``optim_wrapper.clip_grad``; not changed.
        scaler: The loss scaler of the gradients; None means no scaling.
        params_type: The class of ``params``.

    Attributes:
        params: The optimizer's parameters.
        others: The other optimizers of the run.
        policy: The rules.
        state: The counters and statistics.
        clip_rule: The clip rule of numbers: a norm in, a coefficient out.
        grad_rule: The clip rule of tensors, or None.
        scaler: The loss scaler.
        accumulation: The opener of windows.
        window: The present window.
        run: The name of the run in events; kept by a resumed run.
        attempt: The number of this process start of the run, from 1. Loading
            a checkpoint counts it up, unless this guard has trained already.
        last_clip_coef: The clip coefficient of the last committed update.
        num_steps: Number of commits since a start or a change of optimizer.
        reported_iterations: The iterations, from 0, of the present events.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        config: Optional[Dict[str, Any]] = None,
        clip_grad: Optional[Dict[str, Any]] = None,
        scaler: Optional[GuardedGradScaler] = None,
        params_type: Type[GuardedParams] = GuardedParams,
    ) -> None:
        self.policy = GuardPolicy.from_config(config)
        # Early, because it refuses optimizers that cannot be guarded.
        is_checked = self.policy.check_step == 'always'
        super().__init__(params_type(optimizer, is_checked))
        self.others = OtherOptimizers(self.params.left_alone)
        self.others.report_left_alone = self.coverage_warnings.warn_left_alone
        self.clip_rule, self.grad_rule = build_clip(clip_grad)
        self.state = GuardState.from_dict({}, **self.policy.windows())
        self.scaler = scaler or GuardedGradScaler(enabled=False)
        self.run = ''
        self.attempt = 1
        self.last_clip_coef = 1.0
        self.num_steps = 0
        self._root: Optional[nn.Module] = None
        self._has_contexts = False
        self._has_trained = False
        self._listener: Optional[object] = None
        self._events: List[GuardEvent] = []
        self._streak = Streak()
        self.reported_iterations: Set[int] = set()
        self._ended_iterations: List[int] = []
        self.accumulation = Windows(self.others)
        if self.policy.accumulation == 'microbatch':
            self.accumulation = MicroBatches(self)
        self.window = self.accumulation.open()

    # The window, from its opening to its end

    def bind(
        self,
        models: List[nn.Module],
        surroundings: Optional[nn.Module] = None,
        count_steps: Callable[[], int] = int,
    ) -> None:
        """Prepare for a forward pass that may enter no ``optim_context``.

        A context names the model more exactly, so the models given here are
        ignored once a context was entered.

        Args:
            models: The models that this optimizer trains.
            surroundings: With several optimizers, the whole model, through
                which a forward pass may go further (a generator's through
                the discriminator).
            count_steps: Returns the number of commits of all optimizers.
        """
        self._root = surroundings
        if surroundings is None and models:
            self._root = models[0]
        self.params.run = self._root
        self.others.model = surroundings
        self.others.count_steps = count_steps
        self._begin()
        if not self._has_contexts:
            for model in models:
                self._enter(model)

    def open(self, model: nn.Module) -> None:
        """Prepare for a forward pass of ``model`` in its context; no sync."""
        self._begin()
        if not self._has_contexts:
            self._has_contexts = True
            # A context knows the model better than bind() did.
            self.models.clear()
            self.window.forget_models()
        self._enter(model)

    def collect(
        self,
        optimizer: Optimizer,
        closure: Optional[Callable[[], object]] = None,
        **_: object,
    ) -> Tuple[List[Tensor], List[Tensor]]:
        """Return the parameters and gradients that the window ends with.

        Args:
            optimizer: The wrapper's optimizer; a strategy may have replaced
                it.
            closure: An argument of ``optimizer.step``, which is refused with
                GuardConfigError.
        """
        if closure is not None:
            refuse_closure('a closure given to step()')
        if optimizer is not self.params.optimizer:
            self.params.use(optimizer)
            self.num_steps = 0
        params, grads = self.params.trained()
        # Without a copy nothing can be restored, without a loss only the
        # gradients are judged: the user is warned of both.
        if grads and not self.window.snapshot.is_open:
            self.coverage_warnings.warn_once('model')
        if grads and not self.window.losses:
            self.coverage_warnings.warn_once('loss')
        return params, grads

    def close(self) -> None:
        """End the window, and open the next one."""
        self._ended_iterations = self.window.iterations
        self.end_window()
        self._has_trained = True

    def adopt_clip(self, wrapper: OptimWrapper) -> None:
        """Let the ``_clip_grad`` of a user's subclass clip, if it has one."""
        method = type(wrapper)._clip_grad
        self.coverage_warnings.set_length(wrapper._accumulative_counts)
        is_overridden = method is not OptimWrapper._clip_grad
        if is_overridden and wrapper.clip_grad_kwargs:
            self.clip_rule, self.grad_rule = NoClip(), UserClip(wrapper)
            self.coverage_warnings.warn_once('clip')

    @property
    def clips_norm(self) -> bool:
        """Whether a clip rule of numbers is set."""
        return not isinstance(self.clip_rule, NoClip)

    def place(self, params: List[Tensor]) -> Placement:
        """Return the sharding of ``params``."""
        return self.params.place(params, self.models)

    def weights(self) -> List[Tensor]:
        """Return all parameters of the optimizer and of the models."""
        return self.params.weights(self.models)

    def names(self) -> TensorNames:
        """Return the names of parameters and buffers."""
        models = list(self.models)
        # With several optimizers, a part of the model entered the context,
        # and the names of the whole model have its prefix.
        if self._root is not None:
            parts = set(self._root.modules())
            models = [m for m in models if m not in parts]
            models.insert(0, self._root)
        return TensorNames(models, self.params.groups, self.params.slices())

    # Reports

    @property
    def iter(self) -> int:
        """The iteration of MMEngine's loop, from 1.

        Without a loop, the number of judged updates.
        """
        # MMEngine's number counts finished iterations.
        done = self._message_hub.get_info('iter')
        return self.state.num_updates if done is None else done + 1

    def log_norm(self, norm: float) -> None:
        """Log the norm of a committed update under MMEngine's own name."""
        # A user's ``_clip_grad`` logs the norm itself.
        if not isinstance(self.grad_rule, UserClip):
            self._message_hub.update_scalar('train/grad_norm', norm)

    def attach(
        self,
        listener: object,
        note_bypass: Callable[[str, bool], None] = ignore,
    ) -> None:
        """Let ``listener`` fetch the events, report them, and halt.

        Warnings in capitals also go to ``note_bypass``.
        """
        self._listener = listener
        self.coverage_warnings.report = note_bypass

    def detach(self) -> None:
        """Let the guard log its events and halt by itself again."""
        self._listener = None

    def take_events(self) -> List[GuardEvent]:
        """Return the events since the last call, for the caller to report."""
        events, self._events = self._events, []
        return events

    def report(
        self,
        seen: Observation,
        verdict: Verdict,
        bad: Tuple[BadTensor, ...],
        scale_before: float,
        scale_after: float,
        step: Optional[Dict[str, Any]] = None,
    ) -> None:
        """Report an update that was not a plain step.

        An attached listener can fetch the event. Without a listener, the
        event is logged here.

        Args:
            seen: The observation that the verdict is about.
            verdict: The decision.
            bad: A few of the bad tensors.
            scale_before: The loss scale of the update.
            scale_after: The loss scale of the next update.
            step: Describes the optimizer's step, if that is at fault.

        Raises:
            TrainingHalted: On HALT and ROLLBACK, without a listener.
        """
        loss_scale = None
        if self.scaler.is_enabled():
            loss_scale = {'before': scale_before, 'after': scale_after}
        if not self._events:
            self.reported_iterations = set()
        self.reported_iterations.update(self._ended_iterations)
        event = build_event(
            seen,
            verdict,
            self.state,
            stranger=self.coverage_warnings.stranger,
            iter=self.iter,
            optimizer=self.name,
            lr=self.params.lrs(),
            loss_scale=loss_scale,
            params=bad,
            step=step,
            since=self.since,
            run=self.run,
            attempt=self.attempt,
        )
        # A routine overflow neither begins nor ends a streak, nor does an
        # update that did no harm.
        is_skip = event.action is not Action.STEP
        if is_skip and event.counts and not event.is_routine:
            self._streak.add(event)
        if self._listener is not None:
            self._events.append(event)
            return
        say(
            event.line(), logging.INFO if event.is_routine else logging.WARNING
        )
        if event.action in (Action.HALT, Action.ROLLBACK):
            error = self.halted(event)
            say(str(error), logging.ERROR)
            raise error

    def complete(self, event: GuardEvent) -> None:
        """Keep a rejected update, completed by a hook, for the story."""
        self._streak.complete(event)

    def explain(self, event: GuardEvent, record: RowRecord) -> None:
        """Keep an autopsy or a finding on inputs for the story of a halt."""
        self._streak.explain(event, record)

    def halted(self, event: GuardEvent) -> TrainingHalted:
        """Return the exception that tells the story of the halt."""
        return self._streak.halted(event, self.policy)

    @property
    def since(self) -> Optional[int]:
        """The iteration at which the present streak of skips began."""
        return self._streak.since(self.state.consecutive_skips, self.iter)

    # Checkpoints

    def state_dict(self) -> Dict[str, Any]:
        """Return the state in builtins only."""
        # A start that has not trained yet does not count.
        attempt = self.attempt if self._has_trained else self.attempt - 1
        return {
            'state': self.state.to_dict(),
            'run': self.run,
            'attempt': attempt,
            'since': self._streak.start,
            'clip': self.clip_rule.to_dict(),
            'nonfinite_by_design': self._nonfinite_by_design(),
        }

    def _nonfinite_by_design(self) -> List[str]:
        """Return the names of weights that scans must not report."""
        params = self.window.snapshot.tracker.find_harmless()
        return list(map(self.names().of_param, params)) if params else []

    def load_state_dict(self, saved: Dict[str, Any]) -> None:
        """Load a checkpoint's state, under the policy of the config."""
        self.state, self.clip_rule = self.rules_of(saved)
        self.run = saved.get('run', '')
        # A guard that has trained loads a state of its own process start.
        if not self._has_trained:
            self.attempt = saved.get('attempt', 0) + 1
        self._streak.start = saved.get('since', 0)
        self.note_replaced_state()

    def note_replaced_state(self) -> None:
        """Forget the steps so far: weights and optimizer are others now.

        The next commits count as the first ones for ``check_step``.
        """
        self.params.forget_steps()
        self.num_steps = 0

    def rules_of(self, saved: Dict[str, Any]) -> Tuple[GuardState, ClipRule]:
        """Return the state and the clip rule of a checkpoint.

        Their windows and settings are those of the config.
        """
        state, clip = saved.get('state', {}), saved.get('clip', {})
        return (
            GuardState.from_dict(state, **self.policy.windows()),
            load_clip(self.clip_rule, clip),
        )


if TYPE_CHECKING:

    def as_hooks_see_it(guard: Guard) -> GuardProtocol:
        """Let mypy check that a guard has all members that hooks use."""
        return guard
