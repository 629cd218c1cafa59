"""Roles by which hooks find hooks of another room.

``isinstance`` finds a hook by its role, so that a user's subclass has the
role of its base class. The role classes are in this module because rooms do
not import one another.
"""

from typing import Collection, Optional, Sequence, Tuple

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmnanguard.core import GuardEvent

from .hook_arguments import DataBatch

__all__ = [
    'EventSource',
    'LrScaler',
    'ModelChanger',
    'ModuleCaster',
    'SampleWitness',
    'find_source',
    'has_hook',
    'origin_of',
]


class EventSource(Hook):
    """Role of ``NanGuardHook``: hands events and rows to all other hooks.

    Attributes:
        loaded: The checkpoint that the run has loaded, or ''.
        loaded_bad: A few tensors of it that are not finite, in words.
        batch: The index and the batch of the iteration that runs; None
            between two iterations.
    """

    loaded: str = ''
    loaded_bad: Tuple[str, ...] = ()
    batch: Optional[Tuple[int, DataBatch]] = None

    def origin_of(self, names: Collection[str]) -> str:
        """Return how bad tensors became bad, as a clause; '' if unknown.

        Args:
            names: The names of the tensors.
        """
        return ''


class LrScaler(Hook):
    """Role of ``LrFactorHook``: multiplies all learning rates of a run.

    Attributes:
        factor: The factor on the rates of the config.
    """

    factor: float


class SampleWitness(Hook):
    """Role of hooks that know of bad samples: checks of data and inputs."""

    def bad_samples(self, event: GuardEvent) -> Collection[str]:
        """Return the names of samples that are known to be bad on this rank.

        Not collective; may sync the device. Called before the event is
        handed out.

        Args:
            event: An update that was not a plain step.
        """
        raise NotImplementedError


class ModelChanger(Hook):
    """Role of hooks that change the result of a forward pass.

    A replay in another process builds these hooks too, or else it would
    compute another result.
    """


class ModuleCaster(ModelChanger):
    """Role of ``Fp32ModulesHook``: runs modules in float32."""

    def request(self, names: Sequence[str], row_id: str) -> None:
        """Run modules in float32 from the next iteration on.

        Args:
            names: The modules, or their methods; the same on all ranks.
            row_id: The id of the alert that advises it.
        """
        raise NotImplementedError

    def keep_requests(self) -> None:
        """Load the requests of a checkpoint that the run resumes."""
        raise NotImplementedError


def has_hook(runner: Runner, kind: type) -> bool:
    """Whether the runner has a hook of this class or a subclass."""
    return any(isinstance(hook, kind) for hook in runner.hooks)


def origin_of(runner: Runner, names: Collection[str]) -> str:
    """Return how bad tensors became bad, as a clause; '' if unknown.

    Args:
        runner: The runner, whose ``EventSource`` may know it.
        names: The names of the tensors.
    """
    source = find_source(runner)
    return '' if source is None else source.origin_of(names)


def find_source(runner: Runner) -> Optional[EventSource]:
    """Return the runner's ``EventSource``, if it has one."""
    for hook in runner.hooks:
        if isinstance(hook, EventSource):
            return hook
    return None
