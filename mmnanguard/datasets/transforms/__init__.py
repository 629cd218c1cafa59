"""Transforms for the pipeline of a dataset: ``validate_sample``."""

from .validate_sample import ValidateSample

__all__ = ['ValidateSample']
