"""The optimizers and parameters that cannot be guarded, and why."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from mmnanguard.core import GuardConfigError

__all__ = [
    'check_dtype',
    'check_groups',
    'refuse_capture',
    'refuse_closure',
    'refuse_kind',
]


def check_groups(optimizer: Optimizer) -> None:
    """Refuse an optimizer that has no parameter groups."""
    groups = getattr(optimizer, 'param_groups', None)
    for group in groups or [{}]:
        if not (isinstance(group, dict) and 'params' in group):
            name = type(optimizer).__name__
            raise GuardConfigError(
                f'{name}.param_groups is {groups!r}: the guard finds the '
                'parameters there, in a list of dicts with the key '
                "'params'. Call super().__init__(params, defaults) in "
                f'{name}.__init__, or set {name}.param_groups.'
            )


def check_dtype(param: Tensor, is_checked: bool) -> None:
    """Refuse a parameter whose step can overflow with a finite gradient.

    A parameter in float32 or bfloat16 is safe: a clean norm bounds the square
    of each element (``NORM_LIMIT``), so that moments and weights stay finite.
    The step of a float16 parameter overflows at 65504, and is undone only
    where it is checked. Frozen parameters may have any type.

    Args:
        param: The parameter.
        is_checked: Whether the result of each step is checked.

    Raises:
        GuardConfigError: If the type cannot be guarded.
    """
    if not param.is_floating_point() or param.dtype.itemsize >= 4:
        return
    if param.dtype is torch.bfloat16:
        return
    if param.dtype is torch.float16 and is_checked:
        return
    cure = ''
    if param.dtype is torch.float16:
        cure = (
            " Or set optim_wrapper.guard.check_step='always', which checks "
            'each step and undoes it if it made NaN or Inf.'
        )
    raise GuardConfigError(
        f'a parameter of shape {tuple(param.shape)} that is to be trained '
        f'is {param.dtype}: its step can overflow although its gradient is '
        'finite. Keep parameters in float32 and train with '
        "NanGuardAmpOptimWrapper(dtype='bfloat16' or 'float16'), train them "
        f'in bfloat16, or set requires_grad=False.{cure}'
    )


def refuse_kind(what: str) -> None:
    """Raise the GuardConfigError about tensors that cannot be judged."""
    raise GuardConfigError(
        f'{what} cannot be judged: PyTorch has no operation that reads its '
        'numbers. Freeze the parameter (requires_grad=False), or use '
        "MMEngine's own wrapper for this model."
    )


def refuse_capture() -> None:
    """Raise the GuardConfigError about an update in a CUDA graph."""
    raise GuardConfigError(
        'this update is being captured by torch.cuda.graph: the guard reads '
        'its verdict on the host, which a graph cannot do, so a replay would '
        'never be judged. Capture forward and backward alone, as '
        'torch.cuda.make_graphed_callables does, and call optim_context and '
        "step of the wrapper outside, or use MMEngine's own wrapper for this "
        'one.'
    )


def refuse_closure(what: str) -> None:
    """Raise the GuardConfigError about a closure."""
    raise GuardConfigError(
        f'{what} evaluates the loss inside of its step, several times over: '
        'there is no moment between backward and update at which the guard '
        "could judge. Use an optimizer without a closure, or MMEngine's own "
        'wrapper for this one.'
    )
