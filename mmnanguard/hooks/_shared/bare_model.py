"""The user's model behind a wrapper such as DDP."""

from mmengine.model import is_model_wrapper
from torch import nn

__all__ = ['bare_model']


def bare_model(model: nn.Module) -> nn.Module:
    """Return the model that MMEngine's wrapper holds, or the model itself."""
    # Not `hasattr(model, 'module')`: a user's model may have a submodule of
    # that name.
    if not is_model_wrapper(model):
        return model
    inner = model.module
    assert isinstance(inner, nn.Module)
    return inner
