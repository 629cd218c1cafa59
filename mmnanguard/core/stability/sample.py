"""The numbers of one sampled window."""

import math
from dataclasses import dataclass, field
from typing import Mapping, NamedTuple, Optional, Tuple

__all__ = ['LIMITS', 'Largest', 'Operand', 'Sample']

# The largest finite number of each dtype that is measured, the widest first.
LIMITS = {
    'float64': 1.7976931348623157e308,
    'float32': 3.4028234663852886e38,
    'bfloat16': 3.3895313892515355e38,
    'float16': 65504.0,
}


class Largest(NamedTuple):
    """The largest output of a module.

    Attributes:
        value: The largest absolute element; inf if one is not finite.
        dtype: The name of the output's dtype. If the module has outputs of
            several dtypes, the narrowest.
    """

    value: float
    dtype: str

    @property
    def limit(self) -> float:
        """The largest finite number of the dtype."""
        return LIMITS[self.dtype]

    @property
    def bits(self) -> float:
        """Bits of headroom: 0 at the limit, infinite for an output of 0."""
        if self.value == 0:
            return math.inf
        return math.log2(self.limit) - math.log2(self.value)


class Operand(NamedTuple):
    """The smallest operand of a module's operations that have a pole at 0.

    Attributes:
        value: The smallest absolute element that is not 0, of all ranks.
        op: The operation on this rank, such as 'log'; '' if it ran none.
        source: Its line, as 'head.py:12'.
    """

    value: float
    op: str = ''
    source: str = ''


@dataclass(frozen=True)
class Sample:
    """The numbers of one sampled window; with several ranks, of all ranks.

    Attributes:
        iter: The iteration that ends the window, from 1.
        outputs: The largest output of each module that ran.
        logits: The largest argument of a softmax, by module.
        operands: The smallest operand of each module, '' being the model.
        update_ratio: Median over weight matrices of the L2 norm of the update,
            divided by that of the weight; None if nothing was committed.
        most_moved: The matrix with the largest ratio, and the ratio.
        grads: The largest absolute element of the gradients of each module's
            outputs and parameters that are made in float16, with the loss
            scale; empty without a loss scale.
        loss_scale: The loss scale of the window; 1 without one.
        lr: The highest learning rate; NaN if it is not known.
        is_adaptive: Whether the optimizer divides by the size of the gradient,
            as Adam does, so that its updates have the size of the rate.
    """

    iter: int
    outputs: Mapping[str, Largest] = field(default_factory=dict)
    logits: Mapping[str, float] = field(default_factory=dict)
    operands: Mapping[str, Operand] = field(default_factory=dict)
    update_ratio: Optional[float] = None
    most_moved: Tuple[str, float] = ('', 0.0)
    grads: Mapping[str, float] = field(default_factory=dict)
    loss_scale: float = 1.0
    lr: float = math.nan
    is_adaptive: bool = False

    @property
    def fullest(self) -> str:
        """The module whose float16 outputs are the largest; '' if none."""
        half = {
            name: largest.value
            for name, largest in self.outputs.items()
            if largest.dtype == 'float16'
        }
        return max(half, key=half.__getitem__, default='')

    @property
    def steepest(self) -> str:
        """The module with the largest gradient; '' if none is known."""
        return max(self.grads, key=self.grads.__getitem__, default='')

    @property
    def scaled_grad(self) -> Optional[float]:
        """The largest gradient, with the loss scale; None without one."""
        return self.grads.get(self.steepest)

    @property
    def least_bits(self) -> Optional[float]:
        """The least headroom in float16, in bits; None if nothing has any."""
        if not self.fullest:
            return None
        return self.outputs[self.fullest].bits
