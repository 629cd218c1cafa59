"""The record of a tensor that is not as it should be."""

import math
from dataclasses import dataclass

__all__ = ['BadTensor']

KINDS_IN_WORDS = {'nan': 'NaN', 'inf': 'Inf', 'huge': 'huge'}


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
    tensor: str = ''
    kind: str = ''
    count: int = 0
    numel: int = 0
    min: float = math.nan
    max: float = math.nan
    dtype: str = ''

    @property
    def kind_in_words(self) -> str:
        """The kind as it is written in a sentence."""
        return KINDS_IN_WORDS.get(self.kind, self.kind)
