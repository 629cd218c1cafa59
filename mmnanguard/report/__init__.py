"""Readers of what a run told; the standard library only."""

from .read_events import read_events

__all__ = ['read_events']
