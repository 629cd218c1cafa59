"""The row that each process start of a run writes first."""

from dataclasses import dataclass, field
from typing import ClassVar, Mapping, Optional

from .json_numbers import JsonObject
from .row_record import RowRecord

__all__ = ['StartRow']


@dataclass(frozen=True)
class StartRow(RowRecord):
    """The start of an attempt: a process that runs or resumes a run.

    Attributes:
        run: Name of the run. A resumed run keeps its name.
        attempt: Number of the process start, from 1.
        iter: The first iteration that this attempt runs, from 1.
        max_iters: The last iteration of the run.
        versions: Versions of mmnanguard, mmengine, torch and Python.
        guards: The facts about the guard of each optimizer, such as its
            policy; empty if nothing is guarded.
    """

    KIND: ClassVar[str] = 'start'

    run: str = ''
    attempt: int = 1
    iter: int = 1
    max_iters: Optional[int] = None
    versions: Mapping[str, str] = field(default_factory=dict)
    guards: Mapping[str, JsonObject] = field(default_factory=dict)

    def sentence(self) -> str:
        listed = ''
        # A row of another version may have no versions.
        if self.versions:
            versions = map(' '.join, self.versions.items())
            listed = f' ({", ".join(versions)})'
        return (
            f'attempt {self.attempt} starts at iteration {self.iter}{listed}'
        )
