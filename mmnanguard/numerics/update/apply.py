"""The optimizer's step, with unscaling and clipping as one factor."""

import inspect
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, Callable, Iterator, List, Optional

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_pre_hooks

__all__ = ['apply_update', 'scaled_lr']

DTYPE = attrgetter('dtype')


@torch.no_grad()
def apply_update(
    optimizer: Optimizer,
    params: List[Tensor],
    grads: List[Tensor],
    scale: float,
    clip_coef: float,
    grad_rule: Optional[Callable[[List[Tensor], List[Tensor]], None]] = None,
    **step_kwargs: Any,
) -> None:
    """Unscale, clip and step; no sync.

    Unscaling and norm clipping are one factor. A fused optimizer applies it
    in its kernel, if nothing can see the gradients between the call of
    ``step`` and the kernel. Otherwise it is one multiplication, or none if
    the factor is 1.

    Args:
        optimizer: The optimizer, which steps exactly once.
        params: The parameters that have a gradient.
        grads: The gradients, scaled and finite; changed in place.
        scale: The loss scale of the gradients.
        clip_coef: The clip coefficient, in (0, 1].
        grad_rule: A rule that changes unscaled gradients in place.
        step_kwargs: Arguments of ``optimizer.step``.
    """
    factor = clip_coef / scale
    if not grads or (factor == 1.0 and grad_rule is None):
        optimizer.step(**step_kwargs)
    elif grad_rule is None and _takes_grad_scale(optimizer):
        device = grads[0].device
        # The kernel divides by grad_scale. found_inf, which GradScaler sets as
        # well, would only make PyTorch write to all step counters again.
        kernel: Any = optimizer
        kernel.grad_scale = torch.full(
            (), 1 / factor, dtype=torch.float32, device=device
        )
        try:
            optimizer.step(**step_kwargs)
        finally:
            del kernel.grad_scale
    else:
        if factor != 1.0:
            multiply(grads, factor)
        if grad_rule is not None:
            grad_rule(params, grads)
        optimizer.step(**step_kwargs)


@contextmanager
def scaled_lr(optimizer: Optimizer, factor: float) -> Iterator[None]:
    """Multiply learning rates by ``factor`` for the length of one step.

    Schedulers, logs and checkpoints do not see the result.
    """
    if factor == 1.0:
        yield
        return
    before = []
    for group in optimizer.param_groups:
        before.append(group['lr'])
        # A new object: a learning rate may be a tensor that others hold.
        group['lr'] = group['lr'] * factor
    try:
        yield
    finally:
        for group, lr in zip(optimizer.param_groups, before):
            group['lr'] = lr


def multiply(grads: List[Tensor], factor: float) -> None:
    """Multiply gradients by a number in place.

    On a CPU, PyTorch would make a tensor of the number for each gradient. On
    a GPU, PyTorch 2.1 does not accept a tensor that is on the host.
    """
    dtypes = set(map(DTYPE, grads))
    if len(dtypes) == 1 and grads[0].device.type == 'cpu':
        torch._foreach_mul_(grads, torch.tensor(factor, dtype=dtypes.pop()))
    else:
        torch._foreach_mul_(grads, factor)


def _takes_grad_scale(optimizer: Optimizer) -> bool:
    """Whether a fused kernel is sure to get the gradients and the scale.

    ``GradScaler`` reads this attribute, too. A DTensor does not work with
    a plain scale.
    """
    # Not by getattr: an optimizer that delegates to another would have the
    # attribute as well, and the kernel would never see the scale.
    if not vars(optimizer).get('_step_supports_amp_scaling', False):
        return False
    # Hooks after the step see what the kernel writes back: gradients that are
    # unscaled and clipped.
    if _global_optimizer_pre_hooks or optimizer._optimizer_step_pre_hooks:
        return False
    if not _steps_by_itself(optimizer):
        return False
    for group in optimizer.param_groups:
        # The parameters of a group are all DTensors, or none is.
        if group['params'] and hasattr(group['params'][0], 'to_local'):
            return False
    return True


def _steps_by_itself(optimizer: Optimizer) -> bool:
    """Whether ``step`` is the code of PyTorch that runs the fused kernel."""
    step = type(optimizer).step
    # Schedulers count steps with a function in the instance. PyTorch and
    # MMEngine mark theirs; any other function may look at gradients.
    counter = vars(optimizer).get('step')
    if counter is not None:
        is_marked = hasattr(counter, '_with_counter') or hasattr(
            counter, '_wrapped_by_lr_sched'
        )
        original = inspect.unwrap(counter)
        original = getattr(original, '__func__', original)
        if not is_marked or inspect.unwrap(original) != inspect.unwrap(step):
            return False
    return step.__module__.startswith('torch.optim.')
