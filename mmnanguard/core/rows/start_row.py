"""The row that each process start of a run writes first."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Mapping, Optional

from .row_record import RowRecord

__all__ = ['StartRow']


@dataclass(frozen=True)
class StartRow(RowRecord):
    """The start of an attempt: a process that runs or resumes a run.

    Attributes:
        run: Name of the run; a resume keeps it.
        attempt: Number of the process start, from 1.
        iter: The first iteration that this attempt runs, from 1.
        max_iters: The last iteration of the run.
        versions: Of mmnanguard, mmengine, torch and Python.
        guards: By optimizer, what is guarded and by which policy.
    """

    KIND: ClassVar[str] = 'start'

    run: str = ''
    attempt: int = 1
    iter: int = 1
    max_iters: Optional[int] = None
    versions: Mapping[str, str] = field(default_factory=dict)
    guards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def sentence(self) -> str:
        versions = [f'{name} {self.versions[name]}' for name in self.versions]
        listed = f' ({", ".join(versions)})' if versions else ''
        return (
            f'attempt {self.attempt} starts at iteration {self.iter}{listed}'
        )
