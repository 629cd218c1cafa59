import math
from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple

from ..bad_tensor import BadTensor

__all__ = ['NORM_LIMIT', 'LeftOut', 'Observation', 'ScaleReading', 'Shard']

# The largest float32 whose square is a float32 too. A gradient norm within it
# bounds the square of each element, so no second moment can overflow.
NORM_LIMIT = 2.0**64 * (1 - 2.0**-24)


@dataclass(frozen=True)
class ScaleReading:
    """The loss scale before the verdict; the defaults mean 'no scaler'.

    Attributes:
        value: What the loss is multiplied by.
        floor: ``value`` never goes below; at the floor an overflow cannot be
            cured by lowering the scale.
        lower_is_due: False at the floor, or while hysteresis is not used up.
        growth_is_due: This update, if committed, is the one that grows it.
        is_unscaled: A user's own ``loss_scaler.unscale_`` came first.
    """

    value: float = 1.0
    floor: float = 1.0
    lower_is_due: bool = False
    growth_is_due: bool = False
    is_unscaled: bool = False

    @property
    def carried(self) -> float:
        """What the gradients still are multiplied by."""
        return 1.0 if self.is_unscaled else self.value


@dataclass(frozen=True)
class Shard:
    """Norms of this rank's part of gradients that are spread over ranks.

    Attributes:
        group: Lowest of the ranks that share the whole.
        norm: As ``Observation.grad_norm``.
        clip_norm: As ``Observation.clip_norm``.
    """

    group: int
    norm: float
    clip_norm: Optional[float] = None


@dataclass(frozen=True)
class LeftOut:
    """The micro-batches that were not to join their window.

    Attributes:
        seen: What was wrong with them, all together.
        places: Of each its rank, its number in the window, from 1, and the
            iteration.
        total: Micro-batches of the window, on all ranks.
        params: A few of their bad tensors.
    """

    seen: 'Observation'
    places: Tuple[Tuple[int, int, int], ...]
    total: int
    params: Tuple[BadTensor, ...] = ()

    @property
    def is_all(self) -> bool:
        return len(self.places) == self.total

    def to_dict(self) -> Dict[str, Any]:
        return {
            'total': self.total,
            'left_out': [
                {'rank': rank, 'number': number, 'iter': iteration}
                for rank, number, iteration in self.places
            ],
        }


@dataclass(frozen=True)
class Observation:
    """What was seen of one update, in plain numbers.

    Attributes:
        loss: Sum of what was passed to ``backward`` in the window, unscaled:
            with MMEngine's division by the accumulation, the window's mean.
        loss_is_finite: Each micro-batch's loss is finite.
        grad_norm: L2 norm of all gradients, unscaled, before clipping; inf
            where a float32 norm overflows.
        grad_is_finite: No gradient has a NaN or Inf element.
        clip_norm: The norm that clipping asks for, unscaled; None means that
            it is ``grad_norm``.
        buffers_are_finite: No buffer became non-finite in this window.
        input_is_finite: No input flag was raised.
        weights_are_finite: Looked at only when something else is wrong.
        num_bad_params: Gradients that are non-finite or too large.
        num_params: Gradients that were looked at.
        scale: The loss scale.
        bad_ranks: Ranks on which something was wrong.
        shards: What the norms lack until ranks have agreed.
        left_out: What the rest is not about, unless all was left out.
    """

    loss: float
    loss_is_finite: bool = True
    grad_norm: float = 0.0
    grad_is_finite: bool = True
    clip_norm: Optional[float] = None
    buffers_are_finite: bool = True
    input_is_finite: bool = True
    weights_are_finite: bool = True
    num_bad_params: int = 0
    num_params: int = 0
    scale: ScaleReading = ScaleReading()
    bad_ranks: Tuple[int, ...] = ()
    shards: Tuple[Shard, ...] = ()
    left_out: Optional[LeftOut] = None

    @property
    def loss_scale(self) -> float:
        return self.scale.value

    @property
    def norm_is_bounded(self) -> bool:
        """Written so that NaN counts as unbounded.

        A clip norm that overflows would clip everything to zero.
        """
        parts = [(self.grad_norm, self.clip_norm)]
        parts += [(shard.norm, shard.clip_norm) for shard in self.shards]
        return all(
            norm <= NORM_LIMIT and (clip_norm is None or clip_norm < math.inf)
            for norm, clip_norm in parts
        )

    @property
    def forward_is_clean(self) -> bool:
        """Nothing wrong before backward, where ranks share gradients."""
        return (
            self.loss_is_finite
            and self.buffers_are_finite
            and self.input_is_finite
        )

    @property
    def is_clean(self) -> bool:
        return (
            self.forward_is_clean
            and self.grad_is_finite
            and self.norm_is_bounded
            and self.weights_are_finite
        )
