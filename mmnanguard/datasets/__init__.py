"""Ring 3, before the iteration: bad data."""

from .checks import Finite, NotDegenerate, NotEmpty, Range
from .exclude_samples import ExcludeSamples
from .transforms import ValidateSample

__all__ = [
    'ExcludeSamples',
    'Finite',
    'NotDegenerate',
    'NotEmpty',
    'Range',
    'ValidateSample',
]
