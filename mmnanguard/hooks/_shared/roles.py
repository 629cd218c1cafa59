"""Roles by which hooks find hooks of another room.

``isinstance`` finds a hook by its role, so that a user's subclass has the
role of its base class. The role classes are in this module because rooms do
not import one another.
"""

from mmengine.hooks import Hook
from mmengine.runner import Runner

__all__ = ['EventSource', 'LrScaler', 'ModelChanger', 'has_hook']


class EventSource(Hook):
    """Role of ``NanGuardHook``: hands events and rows to all other hooks."""


class LrScaler(Hook):
    """Role of ``LrFactorHook``: multiplies all learning rates of a run.

    Attributes:
        factor: The factor on the rates of the config.
    """

    factor: float


class ModelChanger(Hook):
    """Role of hooks that change the result of a forward pass.

    A replay in another process builds these hooks too, or else it would
    compute another result.
    """


def has_hook(runner: Runner, kind: type) -> bool:
    """Whether the runner has a hook of this class or a subclass."""
    return any(isinstance(hook, kind) for hook in runner.hooks)
