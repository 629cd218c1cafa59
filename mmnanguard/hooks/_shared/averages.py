"""The hooks that average weights, and the models that hold the averages."""

from typing import Iterable, List, Optional

from mmengine.hooks import EMAHook, Hook
from torch import nn

from .bare_model import bare_model

__all__ = ['average_of', 'averaging_hooks', 'ema_models', 'is_mean_teacher']


def ema_models(hooks: Iterable[Hook]) -> List[nn.Module]:
    """Return the averaged models of all ``EMAHook``, in their order."""
    return [hook.ema_model for hook in hooks if isinstance(hook, EMAHook)]


def averaging_hooks(hooks: Iterable[Hook]) -> List[Hook]:
    """Return every ``EMAHook`` and ``MeanTeacherHook``."""
    return list(filter(is_averaging, hooks))


def is_averaging(hook: Hook) -> bool:
    """Whether the hook keeps an average of the model's weights."""
    return isinstance(hook, EMAHook) or is_mean_teacher(hook)


def is_mean_teacher(hook: object) -> bool:
    """Whether the hook is a ``MeanTeacherHook``, of mmdet or a copy of it."""
    # By name, because mmdet need not be installed, and projects without mmdet
    # copy its hook.
    return any(cls.__name__ == 'MeanTeacherHook' for cls in type(hook).mro())


def average_of(hook: Hook, model: Optional[nn.Module]) -> nn.Module:
    """Return the averaged model of an averaging hook.

    Args:
        hook: Hook for which :func:`is_averaging` is true.
        model: Model of the runner. The average of a ``MeanTeacherHook`` is a
            part of it; an ``EMAHook`` does not need it.
    """
    if is_mean_teacher(hook):
        assert model is not None
        # The hook has no reference to the teacher; it finds it by this name:
        # https://github.com/open-mmlab/mmdetection/blob/v3.3.0/mmdet/engine/hooks/mean_teacher_hook.py
        return bare_model(model).get_submodule('teacher')
    assert isinstance(hook, EMAHook)
    average: nn.Module = hook.ema_model
    return average
