"""The record of a tensor that is not as it should be."""

from dataclasses import dataclass

__all__ = ['BadTensor']


@dataclass(frozen=True)
class BadTensor:
    """One tensor that was not as it should be.

    Attributes:
        name: The tensor's name in the model, without wrapper prefixes. A
            shared parameter has all its names, joined by ' = '.
        tensor: 'gradient', 'weight' or 'buffer'.
        kind: 'nan' if any element is NaN, else 'inf', else 'huge'.
        count: Number of non-finite elements.
        numel: Number of elements.
        min: Smallest finite element, of a gradient unscaled; NaN without a
            finite element.
        max: Largest finite element, likewise.
        dtype: The name of the dtype, such as 'float32'.
    """

    name: str
    tensor: str
    kind: str
    count: int
    numel: int
    min: float
    max: float
    dtype: str
