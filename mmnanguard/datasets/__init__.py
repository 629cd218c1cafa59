"""Ring 3, before the iteration: bad data."""

from .checks import Finite, NotDegenerate, NotEmpty, Range
from .transforms import ValidateSample

__all__ = ['Finite', 'NotDegenerate', 'NotEmpty', 'Range', 'ValidateSample']
