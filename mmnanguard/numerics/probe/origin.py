"""The origin of non-finite numbers in a replay."""

from dataclasses import dataclass
from typing import Optional, Tuple

__all__ = ['Origin']


@dataclass(frozen=True)
class Origin:
    """The operation that made non-finite numbers.

    Attributes:
        phase: 'input', 'weight', 'forward', 'loss' or 'backward'.
        module: The name of the module that ran; '' is the model itself.
        module_type: The class name of that module.
        method: The name of the module's method that ran.
        op: The operation, such as ``aten.convolution``; '' for a tensor that
            was non-finite before the replay.
        source: The file and line of the innermost code outside PyTorch, such
            as 'head.py:41'.
        dtype: The dtype of the operation's output, such as 'float16'.
        input_absmax: The largest finite absolute value among the inputs.
        output_absmax: Inf or NaN; NaN if any element of the output is NaN.
        samples: The numbers of the samples that the bad elements depend on;
            empty if they are not known.
        is_fill: Whether the operation wrote the number on request.
        is_pole: Whether the operation is not finite in float64 either, see
            ``is_undefined``; None if that is not known.
        operands: The numbers of which the first bad element was made; empty
            if the operation does not work element by element.
        mask: The operation and the line that wrote the first bad number on
            request, if it is known that nothing else is bad; else ''.
        derivative: In a backward pass, the operation of the forward pass
            whose derivative it computes, such as 'sqrt'; else ''.
        tensor: The name of a weight, or of a tensor in a plain attribute of
            a module, that was bad before the replay; else ''.
    """

    phase: str
    module: str
    module_type: str
    method: str
    op: str
    source: str
    dtype: str
    input_absmax: float
    output_absmax: float
    samples: Tuple[int, ...] = ()
    is_fill: bool = False
    is_pole: Optional[bool] = None
    operands: Tuple[float, ...] = ()
    mask: str = ''
    derivative: str = ''
    tensor: str = ''

    @property
    def is_kept(self) -> bool:
        """Whether the numbers are in a tensor that nothing computed now."""
        return not self.op and self.phase not in ('input', 'weight')
