"""The row that each process start of a run writes first."""

from dataclasses import dataclass, field
from typing import ClassVar, Mapping, Optional, Tuple

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
        unguarded: The type of the wrapper of each optimizer that is not
            guarded, by name.
        launcher: The launcher of the run, as in MMEngine's config.
        ranks: The number of processes of the run.
        ranks_per_node: The number of processes on the first node.
        lr_factor: The factor of an ``LrFactorHook`` on the learning rates of
            the config.
        process: The identity of the process of rank 0, see
            ``mmnanguard._support.process_identity``; None if unknown.
        loaded: The checkpoint that the attempt has loaded, or ''.
        loaded_bad: A few tensors of it that are not finite, such as
            "'head.weight exp_avg' (optimizer)".
    """

    KIND: ClassVar[str] = 'start'

    run: str = ''
    attempt: int = 1
    iter: int = 1
    max_iters: Optional[int] = None
    versions: Mapping[str, str] = field(default_factory=dict)
    guards: Mapping[str, JsonObject] = field(default_factory=dict)
    unguarded: Mapping[str, str] = field(default_factory=dict)
    launcher: str = 'none'
    ranks: int = 1
    ranks_per_node: int = 1
    lr_factor: float = 1.0
    process: Optional[JsonObject] = None
    loaded: str = ''
    loaded_bad: Tuple[str, ...] = ()

    def sentence(self) -> str:
        listed = ''
        # A row of another version may have no versions.
        if self.versions:
            versions = map(' '.join, self.versions.items())
            listed = f' ({", ".join(versions)})'
        return (
            f'attempt {self.attempt} starts at iteration {self.iter}{listed}'
        )
