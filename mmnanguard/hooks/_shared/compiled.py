"""The question whether a module runs compiled code."""

from torch import nn

__all__ = ['is_compiled']


def is_compiled(model: nn.Module) -> bool:
    """Whether ``torch.compile`` was applied to a module of the model."""
    return any(map(is_compiled_module, model.modules()))


def is_compiled_module(module: nn.Module) -> bool:
    """Whether ``torch.compile`` was applied to the module in some way."""
    return (
        # torch.compile(module) wraps the module.
        hasattr(module, '_orig_mod')
        # module.compile() compiles the call in place.
        or getattr(module, '_compiled_call_impl', None) is not None
        # ``compile=True`` in a config compiles the method ``train_step``
        # (MMEngine 0.10.7, runner/runner.py#L1775).
        or hasattr(
            vars(module).get('train_step'), '_torchdynamo_orig_callable'
        )
    )
