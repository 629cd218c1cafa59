"""The part of a guard that hooks may use.

Hooks import this module and not ``mmnanguard.optim``: a hook depends on the
members below and on nothing else of a guard. mypy checks in
``optim/guard.py`` that ``Guard`` has them.

A member that hooks only read is a property, because mypy requires the type of
a writable attribute to be exactly the type in the protocol.
"""

from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Protocol,
    Sequence,
    Set,
    Tuple,
    runtime_checkable,
)

from torch import Tensor, nn
from torch.optim import Optimizer

from mmnanguard.core import (
    ClipRule,
    GuardEvent,
    GuardPolicy,
    GuardState,
    TrainingHalted,
)
from mmnanguard.core.rows.row_record import RowRecord

from .update.blame import Slice
from .update.loss_scale import GuardedGradScaler

__all__ = ['GuardProtocol', 'GuardedProtocol']

# The state of a guard in a checkpoint, in builtins only.
SavedGuard = Dict[str, Any]


class ParamsProtocol(Protocol):
    """The parameters of a guarded optimizer.

    Attributes:
        optimizer: The optimizer, which a strategy may have replaced.
        engine_clip: The norm to which DeepSpeed clips by itself; 0 if it
            does not.
    """

    optimizer: Optimizer
    engine_clip: float

    def __iter__(self) -> Iterator[Tensor]: ...

    def slices(self) -> Mapping[int, Sequence[Slice]]:
        """Return the parts of each flat tensor of an engine, by its id."""

    def stepped(self) -> List[Tensor]:
        """Return the tensors that a step writes, but for the state."""

    def find_spoiler(
        self, weights: Iterable[Tensor]
    ) -> Optional['ParamsProtocol']:
        """Return the optimizer whose last step spoiled weights; syncs."""

    def describe_step(self) -> Dict[str, Any]:
        """Return the value of ``step`` in an event."""


class AccumulationProtocol(Protocol):
    """The opener of a guard's windows."""

    @property
    def num_left_out(self) -> int:
        """Number of micro-batches left out since the guard was built."""


class WindowProtocol(Protocol):
    """The open window of a guard."""

    @property
    def iterations(self) -> List[int]:
        """The iteration of each backward pass, counted from 0."""

    def judge_last(self) -> None:
        """Judge the last micro-batch, if it has had its backward pass."""


class GuardProtocol(Protocol):
    """The members of a guard that hooks use.

    Attributes:
        name: The key in the ``OptimWrapperDict``.
        run: The name of the run in events.
        attempt: The number of this process start of the run, from 1.
        state: The counters and statistics.
        clip_rule: The clip rule of numbers, with its statistics.
        policy: The rules of the verdicts.
    """

    name: str
    run: str
    attempt: int
    # All are immutable: commits, rollbacks and hooks replace the objects.
    state: GuardState
    clip_rule: ClipRule
    policy: GuardPolicy

    # The parts of a guard

    @property
    def params(self) -> ParamsProtocol:
        """The parameters of the optimizer."""

    @property
    def scaler(self) -> GuardedGradScaler:
        """The loss scaler; a disabled scaler if losses are not scaled."""

    @property
    def grad_rule(self) -> object:
        """The clip rule of tensors, or None."""

    @property
    def accumulation(self) -> AccumulationProtocol:
        """The opener of the windows."""

    # The window

    @property
    def window(self) -> WindowProtocol:
        """The present window."""

    @property
    def is_open(self) -> bool:
        """Whether a backward pass has run since the last step."""

    @property
    def facts(self) -> Dict[str, List[Tensor]]:
        """The flags that were raised for the present window, by name."""

    def bind(
        self,
        models: List[nn.Module],
        surroundings: Optional[nn.Module] = None,
        # int() returns 0, the count of a run without other optimizers.
        count_steps: Callable[[], int] = int,
    ) -> None:
        """Prepare for a forward pass that may enter no ``optim_context``."""

    def note_replaced_state(self) -> None:
        """Forget the steps so far: weights and optimizer are others now."""

    def add_fact(self, name: str, flag: Tensor) -> None:
        """Raise a flag for the present window; no sync."""

    # Reporting

    @property
    def num_backwards(self) -> int:
        """Number of finished backward passes of the wrapper."""

    @property
    def reported_iterations(self) -> Set[int]:
        """The iterations, from 0, that made the updates of the events."""

    @property
    def clips_norm(self) -> bool:
        """Whether a clip rule of numbers is set."""

    @property
    def last_clip_coef(self) -> float:
        """The clip coefficient of the last committed update."""

    def attach(
        self, listener: object, note_bypass: Callable[[str, bool], None] = ...
    ) -> None:
        """Let ``listener`` fetch the events, report them, and halt."""

    def detach(self) -> None:
        """Let the guard log its events and halt by itself again."""

    def take_events(self) -> List[GuardEvent]:
        """Return the events since the last call, for the caller to report."""

    def complete(self, event: GuardEvent) -> None:
        """Keep a rejected update, completed by a hook, for the story."""

    def explain(self, event: GuardEvent, record: RowRecord) -> None:
        """Keep an autopsy or a finding on inputs for the story of a halt."""

    def halted(self, event: GuardEvent) -> TrainingHalted:
        """Return the exception that describes the halt."""

    # Checkpoints

    def state_dict(self) -> SavedGuard:
        """Return the state in builtins only."""

    def load_state_dict(self, saved: SavedGuard) -> None:
        """Load the state that :meth:`state_dict` returned."""

    def rules_of(self, saved: SavedGuard) -> Tuple[GuardState, ClipRule]:
        """Return the state and the clip rule of a checkpoint."""


@runtime_checkable
class GuardedProtocol(Protocol):
    """An optimizer wrapper with a guard.

    ``isinstance`` checks only that the attribute exists, so that a user's
    wrapper is recognised whatever its base class is.
    """

    @property
    def guard(self) -> GuardProtocol:
        """The guard of the wrapper."""
