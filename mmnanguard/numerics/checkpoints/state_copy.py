import copy
from typing import Any, Dict, Iterator, List, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from ..base.shards import local

__all__ = ['StateCopy']


class StateCopy:
    """What a run has trained, on the host; nothing of it is shared.

    Of tensors that are spread over ranks, this rank's parts.

    Args:
        tensors: Weights and buffers, by name.
        states: Of each optimizer by name, those of its parameters, in the
            order of its groups.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        states: Mapping[str, List[Dict[str, Any]]],
    ) -> None:
        self._tensors = tensors
        self._states = states

    @classmethod
    def of(
        cls, tensors: Mapping[str, Tensor], optimizers: Mapping[str, Optimizer]
    ) -> 'StateCopy':
        """A copy of what is there; of optimizers without learning rates."""
        return cls(
            {name: to_host(tensor) for name, tensor in tensors.items()},
            {
                name: [
                    tree_map(to_host, dict(optimizer.state.get(param, {})))
                    for param in params_of(optimizer)
                ]
                for name, optimizer in optimizers.items()
            },
        )

    @torch.no_grad()
    def restore(
        self,
        tensors: Mapping[str, Tensor],
        optimizers: Mapping[str, Optimizer],
    ) -> None:
        """Write it into the present ones, in place.

        Raises:
            KeyError: If one is not there any more.
            RuntimeError: If one has another shape now.
        """
        for name, saved in self._tensors.items():
            local(tensors[name]).copy_(saved)
        for name, states in self._states.items():
            optimizer = optimizers[name]
            for param, state in zip(params_of(optimizer), states):
                restore_state(optimizer, param, state)


def restore_state(
    optimizer: Optimizer, param: Tensor, saved: Dict[str, Any]
) -> None:
    if not saved:
        optimizer.state.pop(param, None)
        return
    state = optimizer.state[param]
    for key in set(state) - set(saved):
        del state[key]
    for key, value in saved.items():
        now = state.get(key)
        if isinstance(now, Tensor) and local(now).shape == value.shape:
            local(now).copy_(value)
        else:
            state[key] = copy.deepcopy(value)
            if isinstance(value, Tensor) and value.dim() > 0:
                state[key] = value.to(param.device, copy=True)


def params_of(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group['params']


def to_host(leaf: Any) -> Any:
    """A copy; of a tensor on a GPU in pinned memory, complete once the
    stream that it was asked for in has come to it.
    """
    if not isinstance(leaf, Tensor):
        return copy.deepcopy(leaf)
    leaf = local(leaf).detach()
    host = torch.empty_like(leaf, device='cpu', pin_memory=leaf.is_cuda)
    return host.copy_(leaf, non_blocking=True)
