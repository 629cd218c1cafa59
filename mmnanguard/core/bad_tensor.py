from dataclasses import dataclass

__all__ = ['BadTensor']


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
    tensor: str
    kind: str
    count: int
    numel: int
    min: float
    max: float
    dtype: str
