"""Facts about one tensor that is not as it should be."""

import math
from dataclasses import dataclass

__all__ = ['BadTensor']

KINDS_IN_WORDS = {'nan': 'NaN', 'inf': 'Inf', 'huge': 'huge'}


@dataclass(frozen=True)
class BadTensor:
    """One tensor that was not as it should be.

    Attributes:
        name: As in the model, without wrapper prefixes; all names of a shared
            parameter, joined by ' = '.
        tensor: 'gradient', 'weight' or 'buffer'.
        kind: 'nan' if any element is NaN, else 'inf', else 'huge'.
        count: Number of non-finite elements.
        numel: Number of elements.
        min: Smallest finite element; gradients are unscaled. NaN if none.
        max: Largest finite element; gradients are unscaled. NaN if none.
        dtype: Such as 'float32'.
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
