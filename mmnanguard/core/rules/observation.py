"""The facts about one update, in plain numbers."""

import math
from dataclasses import dataclass, replace
from typing import Dict, Literal, Optional, Tuple

from ..bad_tensor import BadTensor

__all__ = [
    'NORM_LIMIT',
    'USUAL_FLOOR',
    'LeftOut',
    'Observation',
    'ScaleReading',
    'Shard',
]

# Only a loss that is a large sum needs a lower loss scale than this.
USUAL_FLOOR = 1.0

# A gradient norm within this limit bounds the square of each element, so that
# no second moment overflows: in bfloat16 the limit itself has the largest
# square, 2**128 * (1 - 2**-7), with room for rounding. Float32 reaches 0.4 %
# further.
NORM_LIMIT = 2.0**64 * (1 - 2.0**-8)


@dataclass(frozen=True)
class ScaleReading:
    """The loss scale before the verdict.

    The defaults are the reading of a run without a scaler.

    Attributes:
        value: The factor on the loss.
        floor: The lowest value of the scale, inclusive. At the floor a lower
            scale cannot cure an overflow.
        lower_is_due: Whether an overflow in this update lowers the scale.
            False at the floor, and while hysteresis is not used up.
        growth_is_due: Whether the scale grows if this update is committed.
        is_unscaled: Whether the user has called ``loss_scaler.unscale_``.
        home: The value that the user set for a static scale; None for a
            dynamic scale.
        backoff: The factor of a reduction.
    """

    value: float = 1.0
    floor: float = 1.0
    lower_is_due: bool = False
    growth_is_due: bool = False
    is_unscaled: bool = False
    home: Optional[float] = None
    backoff: float = 0.5

    @property
    def carried(self) -> float:
        """The factor that the gradients still carry."""
        # unscale_ divides the gradients, but not the next losses.
        if self.is_unscaled:
            return 1.0
        return self.value


@dataclass(frozen=True)
class Shard:
    """The norms of this rank's part of sharded gradients.

    Attributes:
        group: The lowest of the ranks that share the gradients.
        norm: The value of ``Observation.grad_norm`` for this part.
        clip_norm: The value of ``Observation.clip_norm`` for this part.
    """

    group: int
    norm: float
    clip_norm: Optional[float] = None


@dataclass(frozen=True)
class LeftOut:
    """The micro-batches that were left out of their window.

    Attributes:
        seen: The merged observation of these micro-batches.
        places: A triple (rank, number, iteration) for each micro-batch. The
            number is its place in the window, from 1.
        total: The number of micro-batches of the window on all ranks.
        params: A few of the bad tensors.
    """

    seen: 'Observation'
    places: Tuple[Tuple[int, int, int], ...]
    total: int
    params: Tuple[BadTensor, ...] = ()

    @property
    def is_all(self) -> bool:
        """Whether the whole window was left out."""
        return len(self.places) == self.total

    def to_dict(self) -> Dict[str, object]:
        """Return the value of ``micro_batches`` in a row."""
        # With keys, because a row is read without this class beside it.
        left_out = []
        for rank, number, iteration in self.places:
            left_out.append(
                {'rank': rank, 'number': number, 'iter': iteration}
            )
        return {'total': self.total, 'left_out': left_out}


@dataclass(frozen=True)
class Observation:
    """The facts about one update.

    Attributes:
        loss: Sum of the losses given to ``backward`` in the window, unscaled.
            MMEngine divides each loss by the accumulation, so this is the
            window's mean.
        loss_is_finite: Whether the loss of each micro-batch is finite.
        grad_norm: L2 norm of all gradients, unscaled, before clipping; inf
            if a float32 norm overflows.
        grad_is_finite: Whether no gradient has a NaN or Inf element.
        clip_norm: The norm that the clip rule needs, unscaled; None means
            ``grad_norm``.
        buffers_are_finite: Whether no buffer became non-finite in this
            window.
        input_is_finite: Whether no hook has reported a non-finite input.
        weights_are_finite: Whether all parameters are finite. They are
            checked only if another fact is bad.
        last_step_is_finite: Whether the last committed step left finite
            weights behind. Known only if weights are bad.
        step_is_finite: Whether the settings of the optimizer's step, such as
            learning rates, are finite, and so is what the step made of finite
            gradients.
        num_bad_params: Number of gradients that are non-finite or too large.
        num_params: Number of gradients.
        num_inf_params: Number of gradients with an Inf. It is counted only
            if gradients are bad and the loss is finite.
        scale: The loss scale.
        bad_ranks: The ranks that saw the fault.
        shards: The norms of sharded gradients, which the norms above lack
            until ranks have agreed.
        left_out: The micro-batches that were left out. The other attributes
            are about the rest of the window, unless all were left out.
    """

    # A flag is True when all is well, so a caller passes only what is bad.
    # FLAGS in numerics/update/agree.py names them for the other ranks.
    loss: float
    loss_is_finite: bool = True
    grad_norm: float = 0.0
    grad_is_finite: bool = True
    clip_norm: Optional[float] = None
    buffers_are_finite: bool = True
    input_is_finite: bool = True
    weights_are_finite: bool = True
    last_step_is_finite: bool = True
    step_is_finite: bool = True
    num_bad_params: int = 0
    num_params: int = 0
    num_inf_params: int = 0
    scale: ScaleReading = ScaleReading()
    bad_ranks: Tuple[int, ...] = ()
    shards: Tuple[Shard, ...] = ()
    left_out: Optional[LeftOut] = None

    @property
    def loss_scale(self) -> float:
        """The factor on the loss."""
        return self.scale.value

    @property
    def grad_fault(self) -> Literal['loss', 'inf', 'nan']:
        """The kind of gradients that are not finite.

        'loss' if the loss is not finite either; else 'inf' if a gradient has
        an Inf, and 'nan' if they have NaN only.
        """
        if not self.loss_is_finite:
            return 'loss'
        return 'inf' if self.num_inf_params > 0 else 'nan'

    @property
    def norm_is_bounded(self) -> bool:
        """Whether all norms are within their limits; False for NaN.

        A clip norm of inf would clip everything to zero.
        """
        # Before ranks have agreed, the norm of sharded gradients is in shards.
        parts = [(self.grad_norm, self.clip_norm)]
        for shard in self.shards:
            parts.append((shard.norm, shard.clip_norm))
        for norm, clip_norm in parts:
            # Comparisons with NaN are False, so that NaN is out of bounds.
            if not norm <= NORM_LIMIT:
                return False
            if clip_norm is not None and not clip_norm < math.inf:
                return False
        return True

    @property
    def forward_is_clean(self) -> bool:
        """Whether all facts about the forward pass are good."""
        # Ranks share gradients, so only the forward pass shows on which rank a
        # fault began.
        return (
            self.loss_is_finite
            and self.buffers_are_finite
            and self.input_is_finite
        )

    @property
    def only_loss_is_bad(self) -> bool:
        """Whether the loss is not finite, and all other facts are good."""
        others = replace(self, loss_is_finite=True)
        return not self.loss_is_finite and others.is_clean

    @property
    def is_clean(self) -> bool:
        """Whether all facts are good, so that no cause applies."""
        return (
            self.forward_is_clean
            and self.grad_is_finite
            and self.norm_is_bounded
            and self.weights_are_finite
            and self.last_step_is_finite
            and self.step_is_finite
        )
