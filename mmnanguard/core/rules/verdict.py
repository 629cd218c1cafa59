import enum
from dataclasses import dataclass
from typing import Optional

from ..causes import Cause
from .spike import Spike

__all__ = ['Action', 'ScaleMove', 'Verdict']


class Action(enum.Enum):
    """What happens to the update."""

    STEP = 'step'
    SKIP = 'skip'
    ROLLBACK = 'rollback'
    HALT = 'halt'


class ScaleMove(enum.Enum):
    """What happens to the loss scale; it stays within its bounds."""

    KEEP = 'keep'
    GROW = 'grow'
    LOWER = 'lower'


@dataclass(frozen=True)
class Verdict:
    """The decision on one update.

    Attributes:
        action: STEP commits; every other action leaves no trace.
        cause: NONE for a clean update.
        scale_move: Explicit, because a scaler cannot guess it from the
            gradients: a skip for another reason must not grow the scale.
        clip_coef: Factor in (0, 1] for the unscaled gradients; 1 means that
            nothing is clipped. Only read when the action is STEP.
        spike: What is far above the usual.
        lr_factor: For learning rates, in (0, 1]. Only read when the action
            is STEP.
        lr_return: By how much ``lr_factor`` grows with the next update.
    """

    action: Action
    cause: Cause = Cause.NONE
    scale_move: ScaleMove = ScaleMove.KEEP
    clip_coef: float = 1.0
    spike: Optional[Spike] = None
    lr_factor: float = 1.0
    lr_return: float = 0.0
