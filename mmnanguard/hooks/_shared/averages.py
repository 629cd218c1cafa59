"""The hooks that average weights, and the models that hold the averages."""

from typing import Any, Iterable, List

from mmengine.hooks import EMAHook, Hook
from torch import nn

from .bare_model import bare_model

__all__ = ['average_of', 'averaging_hooks', 'ema_models', 'is_mean_teacher']


def ema_models(hooks: Iterable[Hook]) -> List[nn.Module]:
    """Return the averaged models of all ``EMAHook``, in their order."""
    return [hook.ema_model for hook in hooks if isinstance(hook, EMAHook)]


def averaging_hooks(hooks: Iterable[Hook]) -> List[Hook]:
    """Return every ``EMAHook`` and ``MeanTeacherHook``."""
    return [
        hook
        for hook in hooks
        if isinstance(hook, EMAHook) or is_mean_teacher(hook)
    ]


def is_mean_teacher(hook: Any) -> bool:
    """Whether this is mmdet's hook, or another project's of that name.

    It is known by name, because mmdet need not be installed.
    """
    return any(cls.__name__ == 'MeanTeacherHook' for cls in type(hook).mro())


def average_of(hook: Any, model: Any) -> nn.Module:
    """Return the averaged model of an averaging hook.

    Args:
        hook: One of :func:`averaging_hooks`.
        model: The runner's, of which the average of a ``MeanTeacherHook`` is
            a part.
    """
    if is_mean_teacher(hook):
        return bare_model(model).get_submodule('teacher')
    average: nn.Module = hook.ema_model
    return average
