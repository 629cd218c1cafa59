"""The part of a guard that hooks may use.

Hooks import this module and not ``mmnanguard.optim``: a hook depends on the
members below and on nothing else of a guard. mypy checks in
``optim/guard.py`` that ``Guard`` has them.
"""

from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    Optional,
    Protocol,
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

from .update.loss_scale import GuardedGradScaler

__all__ = ['GuardProtocol', 'GuardedProtocol']


class ParamsProtocol(Protocol):
    """The parameters of a guarded optimizer, which it iterates over."""

    optimizer: Optimizer

    def __iter__(self) -> Iterator[Tensor]: ...


class AccumulationProtocol(Protocol):
    """The rules of gradient accumulation of a guard."""

    @property
    def num_left_out(self) -> int:
        """Number of micro-batches left out since the guard was built."""


class WindowProtocol(Protocol):
    """The open window of a guard."""

    def judge_last(self) -> None:
        """Judge the last micro-batch, if it has had its backward pass."""


class GuardProtocol(Protocol):
    """A guard, as hooks know it.

    Attributes:
        name: Key in the ``OptimWrapperDict``.
        run: Identity of the run in events.
        attempt: Number of the process start, from 1.
        state: Counters and statistics; replaced as a whole.
        clip_rule: Norm clip with its memory; replaced as a whole.
    """

    name: str
    run: str
    attempt: int
    state: GuardState
    clip_rule: ClipRule

    # Its parts

    @property
    def policy(self) -> GuardPolicy: ...

    @property
    def params(self) -> ParamsProtocol: ...

    @property
    def scaler(self) -> GuardedGradScaler: ...

    @property
    def grad_rule(self) -> object:
        """Rule that changes gradients tensor by tensor, or None."""

    @property
    def accumulation(self) -> AccumulationProtocol: ...

    # The window

    @property
    def window(self) -> WindowProtocol: ...

    @property
    def is_open(self) -> bool: ...

    @property
    def facts(self) -> Dict[str, List[Tensor]]: ...

    def bind(
        self,
        models: List[nn.Module],
        surroundings: Optional[nn.Module] = None,
        count_steps: Callable[[], int] = int,
    ) -> None: ...

    def add_fact(self, name: str, flag: Tensor) -> None: ...

    # Reporting

    @property
    def clips_norm(self) -> bool: ...

    @property
    def last_clip_coef(self) -> float: ...

    def attach(self, listener: object) -> None: ...

    def detach(self) -> None: ...

    def take_events(self) -> List[GuardEvent]: ...

    def halted(self, event: GuardEvent) -> TrainingHalted: ...

    # Checkpoints

    def state_dict(self) -> Dict[str, Any]: ...

    def load_state_dict(self, saved: Dict[str, Any]) -> None: ...

    def rules_of(
        self, saved: Dict[str, Any]
    ) -> Tuple[GuardState, ClipRule]: ...


@runtime_checkable
class GuardedProtocol(Protocol):
    """An optimizer wrapper with a guard.

    ``isinstance`` asks for the attribute alone, so that a wrapper of a user
    is recognised whatever it inherits from.
    """

    @property
    def guard(self) -> GuardProtocol: ...
