from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any, Dict, Iterable, Iterator, List, Optional, Set, Tuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from mmnanguard.core import GuardConfigError
from mmnanguard.numerics.base.shards import Placement, Shards, local

__all__ = ['GuardedParams']

# In C, as there may be thousands of gradients.
GRAD, DTYPE, LAYOUT = map(attrgetter, ('grad', 'dtype', 'layout'))
PARAMS = itemgetter('params')

# To tell whose a parameter is; those of wrappers that are gone drop out.
_ALIVE: 'WeakSet[GuardedParams]' = WeakSet()


class GuardedParams:
    """The tensors that an update is about.

    Args:
        optimizer: Whose parameters these are.

    Raises:
        GuardConfigError: If its updates cannot be guarded.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.use(optimizer)
        _ALIVE.add(self)
        if isinstance(optimizer, LBFGS):
            refuse_closure(type(optimizer).__name__)
        for param in self:
            if param.requires_grad:
                check_dtype(param)

    def use(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._has_parts = any(map(is_part, self))
        self._shards: Optional[Shards] = None

    def __iter__(self) -> Iterator[Tensor]:
        return chain.from_iterable(map(PARAMS, self.groups))

    @property
    def groups(self) -> List[Dict[str, Any]]:
        return self.optimizer.param_groups

    def lrs(self) -> Tuple[float, ...]:
        return tuple(float(group['lr']) for group in self.groups)

    def foreign(self) -> Set[int]:
        """Ids of what other guarded optimizers train."""
        others = {id(p) for params in list(_ALIVE) for p in params}
        return others - {id(param) for param in self}

    def trained(self) -> Tuple[List[Tensor], List[Tensor]]:
        """Parameters that have a gradient, and these gradients' elements, of
        a sharded one those on this rank.
        """
        params = list(self)
        grads: List[Any] = list(map(GRAD, params))
        if type(None) in set(map(type, grads)):
            params = [param for param in params if param.grad is not None]
            grads = list(map(GRAD, params))
        if not self._has_parts and are_plain(grads):
            return params, grads
        found, params, grads = params, [], []
        for param in found:
            grad: Any = param.grad
            if grad.dtype is not torch.float32:
                check_dtype(param)
            if grad.is_sparse:
                # Duplicate indices must be summed before they are judged.
                grad = param.grad = grad.coalesce()
                grad = grad._values()
            if self._has_parts:
                grad = local(grad)
                if grad.numel() == 0:  # a small one may lie on other ranks
                    continue
            params.append(param)
            grads.append(grad)
        return params, grads

    def place(
        self, params: List[Tensor], models: Iterable[nn.Module]
    ) -> Placement:
        """Which of ``params`` are spread over ranks."""
        if self._shards is None:
            self._shards = Shards(self, models)
        return self._shards.place(params)

    def weights(self, models: Iterable[nn.Module]) -> List[Tensor]:
        """All parameters, the optimizer's and those of the models."""
        weights = {id(param): param for param in self}
        for model in models:
            for param in model.parameters():
                weights.setdefault(id(param), param)
        return list(weights.values())


def are_plain(grads: List[Tensor]) -> bool:
    """Can they be judged as they are?"""
    return set(map(DTYPE, grads)) <= {torch.float32} and (
        set(map(LAYOUT, grads)) <= {torch.strided}
    )


def is_part(param: Tensor) -> bool:
    """Does this rank hold a part of it only, or nothing?"""
    return (
        hasattr(param, 'to_local')
        or hasattr(param, '_fsdp_flattened')
        or param.numel() == 0
    )


def check_dtype(param: Tensor) -> None:
    """Refuse what can overflow in the step itself, behind every check.

    Float32 cannot: a gradient whose float32 norm is finite keeps moments and
    weights finite. Frozen parameters may be of any type.
    """
    if param.is_floating_point() and param.dtype.itemsize < 4:
        raise GuardConfigError(
            f'a parameter of shape {tuple(param.shape)} that is to be trained '
            f'is {param.dtype}: its step can overflow although its gradient '
            'is finite, which nothing could undo. Keep parameters in float32 '
            'and train with NanGuardAmpOptimWrapper('
            "dtype='bfloat16' or 'float16'), or set requires_grad=False."
        )


def refuse_closure(what: str) -> None:
    raise GuardConfigError(
        f'{what} evaluates the loss inside of its step, several times over: '
        'there is no moment between backward and update at which the guard '
        "could judge. Use an optimizer without a closure, or MMEngine's own "
        'wrapper for this one.'
    )
