"""The check that a run with DeepSpeed has the wrapper for it."""

from typing import Mapping

from mmengine.optim import BaseOptimWrapper
from torch import nn

from mmnanguard.core import GuardConfigError

__all__ = ['check_engine']


def check_engine(
    model: nn.Module, wrappers: Mapping[str, BaseOptimWrapper]
) -> None:
    """Refuse guarded wrappers that pass an engine of DeepSpeed by.

    MMEngine builds any wrapper beside DeepSpeedStrategy. A wrapper for plain
    optimizers then calls backward past the engine, and the ranks never
    exchange their gradients.

    Args:
        model: The runner's model.
        wrappers: The runner's guarded wrappers by name.

    Raises:
        GuardConfigError: If a wrapper is not made for DeepSpeed.
    """
    if not has_base(model, 'MMDeepSpeedEngineWrapper'):
        return
    for name, wrapper in wrappers.items():
        if not has_base(wrapper, 'DeepSpeedOptimWrapper'):
            raise GuardConfigError(
                f"optimizer '{name}' is run by {type(wrapper).__name__}, "
                'which calls backward and step past the engine of '
                'DeepSpeedStrategy. Set optim_wrapper.type to '
                'mmnanguard.NanGuardDeepSpeedOptimWrapper, without keys of '
                'precision, accumulation and clipping, which are set in the '
                'strategy; --guard does so.'
            )


def has_base(value: object, name: str) -> bool:
    """Whether a class of this name is among the value's classes."""
    # By name, because DeepSpeed need not be installed.
    return any(kind.__name__ == name for kind in type(value).__mro__)
