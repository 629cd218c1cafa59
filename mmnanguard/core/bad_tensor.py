"""The record of a tensor with elements that are NaN, Inf or huge."""

import math
from dataclasses import dataclass

__all__ = ['BadTensor']

# A kind that only another version knows is written unchanged.
KINDS_IN_WORDS = {'nan': 'NaN', 'inf': 'Inf', 'huge': 'huge'}


@dataclass(frozen=True)
class BadTensor:
    """A tensor with elements that are NaN, Inf or huge.

    Attributes:
        name: The tensor's name in the model, without wrapper prefixes. A
            shared parameter has all its names, joined by ' = '.
        tensor: 'gradient', 'weight' or 'buffer'; in an audit, the part of
            the state that holds the tensor, such as 'optimizer'.
        kind: 'nan' if any element is NaN, else 'inf' if any is infinite, else
            'huge'.
        count: Number of non-finite elements.
        numel: Number of elements.
        min: Smallest finite element, divided by the loss scale if the tensor
            is a gradient; NaN if no element is finite.
        max: Largest finite element, divided as ``min`` is; NaN if no element
            is finite.
        dtype: The name of the dtype, such as 'float32'.
    """

    # Only the name is needed: rows of another version may lack other keys.
    name: str
    tensor: str = ''
    kind: str = ''
    count: int = 0
    numel: int = 0
    min: float = math.nan
    max: float = math.nan
    dtype: str = ''

    @property
    def kind_in_words(self) -> str:
        """The kind in the spelling of a sentence."""
        return KINDS_IN_WORDS.get(self.kind, self.kind)
