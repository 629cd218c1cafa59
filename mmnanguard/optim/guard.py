import logging
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple

from mmengine.logging import MessageHub, print_log
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.optim import Optimizer

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
from mmnanguard.core.checks import check_keys
from mmnanguard.core.rows.build_event import report
from mmnanguard.numerics import GuardedGradScaler
from mmnanguard.numerics.base.shards import Placement
from mmnanguard.numerics.guard_protocol import GuardProtocol
from mmnanguard.numerics.update.blame import TensorNames

from .accumulation import MicroBatches, WholeWindow
from .clip_grad import UserClip, build_clip, load_clip
from .coverage_warnings import CoverageWarnings
from .guarded_params import GuardedParams, refuse_closure
from .streak import Streak
from .undo import Undo

__all__ = ['Guard']


class Guard:
    """What one optimizer wrapper keeps for its transactions.

    A transaction opens at the first ``optim_context`` (or ``backward``) when
    none is open and closes at ``step``. With gradient accumulation it spans
    the window.

    Args:
        optimizer: Whose updates are guarded.
        config: ``optim_wrapper.guard``.
        clip_grad: ``optim_wrapper.clip_grad``; left as it is.
        scaler: The loss scale of the gradients; None means no scaling.

    Attributes:
        name: Key in the ``OptimWrapperDict``, set by ``NanGuardHook``.
        run: Names the run in events; survives a resume.
        attempt: Counts process starts of the run, from 1.
        last_clip_coef: Of the last committed update.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        config: Optional[Dict[str, Any]] = None,
        clip_grad: Optional[Dict[str, Any]] = None,
        scaler: Optional[GuardedGradScaler] = None,
    ) -> None:
        self.params = GuardedParams(optimizer)
        self.coverage_warnings = CoverageWarnings()
        self.coverage_warnings.watch(optimizer)
        self.policy = GuardPolicy.from_config(config)
        self.clip_rule, self.grad_rule = build_clip(clip_grad)
        self.state = GuardState.from_dict({}, **self.policy.windows())
        self.scaler = scaler or GuardedGradScaler(enabled=False)
        self.undo = Undo(self.params.foreign)
        self.name = 'default'
        self.run = ''
        self.attempt = 1
        self.last_clip_coef = 1.0
        self.losses: List[Tensor] = []
        self.facts: Dict[str, List[Tensor]] = {}
        self._models: Dict[nn.Module, None] = {}  # an ordered set
        self._has_contexts = False
        self._listener: Any = None
        self._events: List[GuardEvent] = []
        self._streak = Streak()
        self._message_hub = MessageHub.get_current_instance()
        self.accumulation = WholeWindow()
        if self.policy.accumulation == 'microbatch':
            self.accumulation = MicroBatches(self)

    # The window, from its opening to its close

    def bind(
        self,
        models: List[nn.Module],
        surroundings: Optional[nn.Module] = None,
        count_steps: Callable[[], int] = int,
    ) -> None:
        """Open a window for a loop that enters no ``optim_context``; what a
        context tells is more exact, and takes its place.

        Args:
            models: What this optimizer trains.
            surroundings: Of several optimizers: the whole model, through
                which a forward pass may go further (a generator's through
                the discriminator).
            count_steps: Commits of all of them so far.
        """
        self.undo.bind(surroundings, count_steps)
        self.accumulation.bind(surroundings, count_steps)
        if not self._has_contexts:
            for model in models:
                self._take(model)

    def open(self, model: nn.Module) -> None:
        """Remember what a forward pass of ``model`` may change; no sync."""
        if not self._has_contexts:
            self._has_contexts = True
            self._models.clear()
            self.undo.snapshot.close()
        self._take(model)

    def _take(self, model: nn.Module) -> None:
        self._models[model] = None
        self.accumulation.begin(model)
        self.undo.take(model)

    @property
    def is_open(self) -> bool:
        """Is a window under way, of which a backward pass was seen?"""
        return bool(self.losses or self.accumulation.num_batches)

    def add_loss(self, loss: Tensor) -> None:
        """Note the loss of one micro-batch; no sync."""
        value = loss.detach()
        self.losses.append(value if value.dim() == 0 else value.sum())

    def add_fact(self, name: str, flag: Tensor) -> None:
        """Raise a flag for this window; no sync.

        Args:
            name: 'input'.
            flag: 0-dim; non-zero means bad.

        Raises:
            GuardConfigError: For another name.
        """
        check_keys([name], ['input'], 'add_fact')
        self.facts.setdefault(name, []).append(flag)

    def collect(
        self, optimizer: Optimizer, closure: Any = None, **_: Any
    ) -> Tuple[List[Tensor], List[Tensor]]:
        """Parameters and gradients that the window ends with.

        Args:
            optimizer: The wrapper's; a strategy may have replaced it.
            closure: Of ``optimizer.step``; refused with GuardConfigError.
        """
        if closure is not None:
            refuse_closure('a closure given to step()')
        if optimizer is not self.params.optimizer:
            self.params.use(optimizer)
            self.coverage_warnings.watch(optimizer)
        params, grads = self.params.trained()
        if grads and not self.undo.snapshot.is_open:
            self.coverage_warnings.warn_once('model')
        if grads and not self.losses:
            self.coverage_warnings.warn_once('loss')
        return params, grads

    def close(self) -> None:
        self.losses, self.facts = [], {}
        self.undo.snapshot.close()
        self.accumulation.close()

    def adopt_clip(self, wrapper: OptimWrapper) -> None:
        """Let a subclass's own ``_clip_grad`` clip instead of a rule here."""
        is_own = type(wrapper)._clip_grad is not OptimWrapper._clip_grad
        if is_own and wrapper.clip_grad_kwargs:
            self.clip_rule, self.grad_rule = NoClip(), UserClip(wrapper)
            self.coverage_warnings.warn_once('clip')

    @property
    def clips_norm(self) -> bool:
        return not isinstance(self.clip_rule, NoClip)

    def place(self, params: List[Tensor]) -> Placement:
        """Which of ``params`` are spread over ranks."""
        return self.params.place(params, self._models)

    def weights(self) -> List[Tensor]:
        """All parameters, the optimizer's and those of the models."""
        return self.params.weights(self._models)

    def names(self) -> TensorNames:
        return TensorNames(list(self._models), self.params.groups)

    # Telling

    @property
    def iter(self) -> int:
        """Of MMEngine's loop, from 1; without a loop, updates judged."""
        done = self._message_hub.get_info('iter')
        return self.state.num_updates if done is None else done + 1

    def log_norm(self, norm: float) -> None:
        """Report a committed update's norm under MMEngine's own name."""
        if not isinstance(self.grad_rule, UserClip):  # which has done so
            self._message_hub.update_scalar('train/grad_norm', norm)

    def attach(self, listener: Any) -> None:
        """Let ``listener`` fetch events, tell them, and halt."""
        self._listener = listener

    def detach(self) -> None:
        self._listener = None

    def take_events(self) -> List[GuardEvent]:
        """Events since the last call; the caller now has to tell them."""
        events, self._events = self._events, []
        return events

    def tell(
        self,
        seen: Observation,
        verdict: Verdict,
        bad: Tuple[BadTensor, ...],
        scale_before: float,
        scale_after: float,
    ) -> None:
        """Hand on one rejected update, or log it and halt by oneself.

        Raises:
            TrainingHalted: On HALT and ROLLBACK, if nothing is attached.
        """
        event = report(
            seen,
            verdict,
            self.state,
            iter=self.iter,
            optimizer=self.name,
            lr=self.params.lrs(),
            loss_scale=(
                {'before': scale_before, 'after': scale_after}
                if self.scaler.is_enabled()
                else None
            ),
            params=bad,
            since=self.since,
            run=self.run,
            attempt=self.attempt,
        )
        if event.action is not Action.STEP and not event.is_routine:
            self._streak.add(event)
        if self._listener is not None:
            self._events.append(event)
            return
        print_log(
            event.line(),
            logger='current',
            level=logging.INFO if event.is_routine else logging.WARNING,
        )
        if event.action in (Action.HALT, Action.ROLLBACK):
            error = self.halted(event)
            print_log(str(error), logger='current', level=logging.ERROR)
            raise error

    def halted(self, event: GuardEvent) -> TrainingHalted:
        """The exception that tells the whole story."""
        return self._streak.halted(event, self.policy)

    @property
    def since(self) -> Optional[int]:
        """Iteration at which the present streak of skips began."""
        if self.state.consecutive_skips == 0:
            return None
        return self._streak.since(self.state.consecutive_skips, self.iter)

    # Checkpoints

    def state_dict(self) -> dict:
        """Builtins only."""
        return {
            'state': self.state.to_dict(),
            'run': self.run,
            'attempt': self.attempt,
            'since': self._streak.start,
            'clip': self.clip_rule.to_dict(),
        }

    def load_state_dict(self, saved: Dict[str, Any]) -> None:
        """Go on where a checkpoint ends; the policy is the config's."""
        self.state, self.clip_rule = self.rules_of(saved)
        self.run = saved.get('run', '')
        self.attempt = saved.get('attempt', 0) + 1
        self._streak.start = saved.get('since', 0)

    def rules_of(self, saved: Dict[str, Any]) -> Tuple[GuardState, ClipRule]:
        """What a checkpoint knows; windows and rules are the config's."""
        state, clip = saved.get('state', {}), saved.get('clip', {})
        return (
            GuardState.from_dict(state, **self.policy.windows()),
            load_clip(self.clip_rule, clip),
        )


if TYPE_CHECKING:

    def as_hooks_see_it(guard: Guard) -> GuardProtocol:
        """Let mypy check that a guard has all that hooks use of it."""
        return guard
