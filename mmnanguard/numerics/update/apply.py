"""The optimizer's step, with unscaling and clipping as one factor."""

from contextlib import contextmanager
from operator import attrgetter
from typing import Any, Callable, Iterator, List, Optional

import torch
from torch import Tensor
from torch.optim import Optimizer

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
    in its kernel. For other optimizers it is one multiplication, or none if
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
    """Whether the optimizer is fused and unscales in its kernel.

    ``GradScaler`` reads this attribute, too. A DTensor does not work with
    a plain scale.
    """
    if not getattr(optimizer, '_step_supports_amp_scaling', False):
        return False
    for group in optimizer.param_groups:
        # The parameters of a group are all DTensors, or none is.
        if group['params'] and hasattr(group['params'][0], 'to_local'):
            return False
    return True
