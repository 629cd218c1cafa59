"""The decision on one update."""

import enum
from dataclasses import dataclass
from typing import Optional

from ..causes import Cause
from .spike import Spike

__all__ = ['Action', 'ScaleMove', 'Verdict']


class Action(enum.Enum):
    """The fate of an update."""

    # The values are in event rows. 'rollback' and 'halt' are also values of
    # guard.when_exhausted.
    STEP = 'step'
    SKIP = 'skip'
    ROLLBACK = 'rollback'
    HALT = 'halt'


class ScaleMove(enum.Enum):
    """The change of the loss scale, which stays within its bounds."""

    KEEP = 'keep'
    GROW = 'grow'
    LOWER = 'lower'
    RETURN = 'return'


@dataclass(frozen=True)
class Verdict:
    """The decision on one update.

    Attributes:
        action: STEP commits; every other action leaves no trace.
        cause: The cause of the action; NONE for a clean update.
        scale_move: The change of the loss scale.
        scale_to: The loss scale that the move ends at; None for one step of
            the scaler.
        blames_scale: Whether a cause that a lower scale may cure counts as
            an overflow of the scale. False if evidence speaks against that.
        clip_coef: Factor in (0, 1] for the unscaled gradients; 1 means that
            nothing is clipped. Only read when the action is STEP.
        spike: The number that is far above its recent values, if there is
            such a number.
        lr_factor: Factor in (0, 1] for learning rates. Only read when the
            action is STEP.
        lr_return: The amount by which ``lr_factor`` grows with the next
            committed update.
        counts: Whether a rejected update, or a micro-batch that was left
            out, counts toward the limits. False for a loss that is not
            finite although its gradients are: the update does no harm,
            and may even be committed.
    """

    action: Action
    cause: Cause = Cause.NONE
    # Explicit, because a scaler cannot guess it from the gradients: finite
    # gradients of a skipped spike must not grow the scale.
    scale_move: ScaleMove = ScaleMove.KEEP
    clip_coef: float = 1.0
    spike: Optional[Spike] = None
    lr_factor: float = 1.0
    lr_return: float = 0.0
    counts: bool = True
    scale_to: Optional[float] = None
    blames_scale: bool = True
