"""A copy of the trained state on the host, which can be restored."""

import copy
from typing import Any, Dict, Iterator, List, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from ..base.shards import local

__all__ = ['StateCopy']

# The state of one parameter in an optimizer.
ParamState = Dict[str, Any]


class StateCopy:
    """A deep copy of weights, buffers and optimizer states on the host.

    A sharded tensor is copied without the parts of other ranks.

    Args:
        tensors: The weights and buffers by name.
        states: The states of each optimizer's parameters, in the order of
            the optimizer's groups, by the name of the optimizer.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        states: Mapping[str, List[ParamState]],
    ) -> None:
        self._tensors = tensors
        self._states = states

    @classmethod
    def of(
        cls, tensors: Mapping[str, Tensor], optimizers: Mapping[str, Optimizer]
    ) -> 'StateCopy':
        """Copy the present state, without the optimizers' learning rates."""
        states: Dict[str, List[ParamState]] = {}
        for name, optimizer in optimizers.items():
            states[name] = []
            for param in params_of(optimizer):
                # get: optimizer.state is a defaultdict, which must not gain
                # an entry for a parameter that was never updated.
                state = dict(optimizer.state.get(param, {}))
                states[name].append(tree_map(to_host, state))
        copies: Dict[str, Tensor] = tree_map(to_host, dict(tensors))
        return cls(copies, states)

    @torch.no_grad()
    def restore(
        self,
        tensors: Mapping[str, Tensor],
        optimizers: Mapping[str, Optimizer],
    ) -> None:
        """Write the copy into the present tensors and states, in place.

        Raises:
            KeyError: If a tensor or optimizer does not exist any more.
            RuntimeError: If a tensor has another shape now.
        """
        for name, saved in self._tensors.items():
            # In place: the optimizer, DDP's buckets and captured graphs refer
            # to this memory.
            local(tensors[name]).copy_(saved)
        for name, states in self._states.items():
            optimizer = optimizers[name]
            for param, state in zip(params_of(optimizer), states):
                restore_state(optimizer, param, state)


def restore_state(
    optimizer: Optimizer, param: Tensor, saved: ParamState
) -> None:
    """Make the state of one parameter equal to the saved one."""
    if not saved:
        # An optimizer initializes the state of a parameter that has none.
        optimizer.state.pop(param, None)
        return
    state = optimizer.state[param]
    for key in set(state) - set(saved):
        del state[key]
    for key, value in saved.items():
        now = state.get(key)
        # A state that has changed its shape, or is new, is replaced.
        if isinstance(now, Tensor) and local(now).shape == value.shape:
            local(now).copy_(value)
        else:
            state[key] = copy.deepcopy(value)
            # Step counters stay on the host, where PyTorch's optimizers have
            # them unless they are 'capturable' or 'fused'.
            if isinstance(value, Tensor) and value.dim() > 0:
                state[key] = value.to(param.device, copy=True)


def params_of(optimizer: Optimizer) -> Iterator[Tensor]:
    """Yield an optimizer's parameters in the order of its groups."""
    for group in optimizer.param_groups:
        yield from group['params']


def to_host(leaf: object) -> object:
    """Return a copy on the host; no sync.

    The copy of a tensor on a GPU is in pinned memory. It is complete once
    the current stream has reached it.
    """
    if not isinstance(leaf, Tensor):
        return copy.deepcopy(leaf)
    leaf = local(leaf).detach()
    # A copy to pageable memory would wait for the device.
    host = torch.empty_like(leaf, device='cpu', pin_memory=leaf.is_cuda)
    return host.copy_(leaf, non_blocking=True)
