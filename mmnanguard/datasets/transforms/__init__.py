"""Steps of a pipeline."""

from .validate_sample import ValidateSample

__all__ = ['ValidateSample']
