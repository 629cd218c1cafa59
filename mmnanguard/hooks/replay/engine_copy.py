"""A copy of the model of an engine, in which a window can be run again.

An engine (DeepSpeed) reduces gradients as soon as backward makes them, so its
own model cannot be used.
"""

import copy
from typing import Any, Dict, Optional

from torch import Tensor, nn

__all__ = ['copy_engine']


class EngineCopy(nn.Module):
    """The model of an engine without the engine.

    It takes as much memory as weights and buffers.

    Args:
        wrapper: MMEngine's wrapper of the engine.
    """

    def __init__(self, wrapper: Any) -> None:
        super().__init__()
        shared = functions_of(wrapper.module)
        self.module: nn.Module = copy.deepcopy(wrapper.module, shared)
        # Its train_step, with this module in the place of the engine. Not by
        # copy.copy, which asks a wrapper without an engine for attributes.
        self._wrapper: Any = object.__new__(type(wrapper))
        vars(self._wrapper).update(vars(wrapper), model=self)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        return self.module(*args, **kwargs)

    def train_step(self, data: Any, optim_wrapper: Any) -> Dict[str, Tensor]:
        """Run an iteration as MMEngine's wrapper does."""
        losses: Dict[str, Tensor] = self._wrapper.train_step(
            data, optim_wrapper
        )
        return losses


def functions_of(model: nn.Module) -> Dict[int, Any]:
    """Return hooks and replaced methods by id; the runner may be behind them.

    In this form ``copy.deepcopy`` takes what it is not to copy.
    """
    shared = {}
    for module in model.modules():
        for value in vars(module).values():
            values = value.values() if isinstance(value, dict) else [value]
            for item in values:
                if callable(item) and not isinstance(item, nn.Module):
                    shared[id(item)] = item
    return shared


def copy_engine(wrapper: Any) -> Optional[EngineCopy]:
    """Return a copy of the model of an engine; None if it has none."""
    try:
        return EngineCopy(wrapper)
    except Exception:
        # A model may hold anything.
        return None
