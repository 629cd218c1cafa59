"""The optimizer states in a checkpoint, with the names of parameters.

An optimizer saves its states by index. :func:`param_names` derives the names
from the model's tensors and returns only names that are certain.
"""

from typing import (
    Any,
    Dict,
    FrozenSet,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
    Union,
)

import torch
from torch import Tensor

from ..base.shards import local
from ..base.tensor_kinds import stored_values
from .stubs import STUBS

__all__ = [
    'GUARD_KEY',
    'optimizer_tensors',
    'optimizers_of',
    'owner_prefix',
    'running_stats',
    'walk',
]

# The key of a checkpoint under which the guard's state is saved as well, for
# strategies that save only 'state' and 'param_groups' of an optimizer wrapper.
GUARD_KEY = 'nanguard'

# The buffers of BatchNorm, in the order in which it registers them.
RUNNING_STATS = ('running_mean', 'running_var', 'num_batches_tracked')
Shape = Tuple[int, ...]
# A parameter in a saved optimizer: its index, or its name where FSDP saved it.
Index = Union[int, str]
# A loaded checkpoint, or a part of it. The values are not checked.
StateDict = Mapping[str, Any]


def optimizers_of(saved: object) -> Dict[str, StateDict]:
    """Return the states of a checkpoint's optimizers by name.

    The name is '' in a run without ``OptimWrapperDict``.
    """
    if not isinstance(saved, Mapping):
        return {}
    # Either key shows that this is the state of a single optimizer.
    if 'state' in saved or 'param_groups' in saved:
        return {'': saved}
    # OptimWrapperDict saves further keys, such as 'base_param_settings'.
    states = {}
    for name, state in saved.items():
        if isinstance(state, Mapping):
            states[str(name)] = state
    return states


def optimizer_tensors(
    saved: object, weights: Mapping[str, Tensor]
) -> Iterator[Tuple[Optional[str], str, Union[Tensor, float]]]:
    """Yield the tensors and floats of a checkpoint's optimizers.

    Args:
        saved: The value of the checkpoint's key 'optimizer'.
        weights: The model's tensors, in the order of its ``state_dict``.

    Yields:
        The name of the parameter, or None where it is not certain; a name
        to show; the value.
    """
    for owner, optimizer in optimizers_of(saved).items():
        start = owner_prefix(owner)
        states = optimizer.get('state')
        groups = optimizer.get('param_groups') or ()
        if not isinstance(states, Mapping):
            # Without PyTorch's format, no parameter's name is known.
            for path, value in walk(optimizer):
                yield None, start + path, value
            continue
        # The learning rate is saved, too, and a scheduler can make it NaN.
        for index, group in enumerate(groups):
            if isinstance(group.get('lr'), (Tensor, float)):
                yield None, f'{start}group {index} lr', group['lr']
        params = param_names(states, groups, weights, owner)
        for index, state in states.items():
            param = params.get(index)
            for path, value in walk(state):
                name = f'{param or f"state {index}"} {path}'
                yield param, start + name, value


def owner_prefix(owner: str) -> str:
    """Return the start of all names that are shown for an optimizer."""
    return f'{owner}: ' if owner else ''


def param_names(
    states: Mapping[Index, object],
    groups: Sequence[StateDict],
    weights: Mapping[str, Tensor],
    owner: str = '',
) -> Dict[Index, str]:
    """Return the names of an optimizer's parameters, where they are certain.

    With a single parameter group, or with a group for each parameter (as
    MMEngine makes them), parameters come in the order of the model's
    ``state_dict``, which also holds buffers. A parameter has the shape of its
    moments. Of all ways to place the parameters among the tensors of the
    model, the first way and the last way must agree on a name.

    Args:
        states: The state of each parameter by the parameter's index, or by
            its name if FSDP saved the states.
        groups: The parameter groups, which hold indices.
        weights: The model's tensors.
        owner: The name of the optimizer. It must be the name of a submodule,
            as is usual for GANs; otherwise no name is certain.
    """
    if states and set(map(type, states)) == {str}:
        return dict(zip(states, map(str, states)))
    order: List[Index] = []
    names: List[str] = []
    for group in groups:
        order += group['params']
        # Saved since PyTorch 2.6, if the optimizer got named parameters.
        names += group.get('param_names') or ()
    if order and len(names) == len(order):
        return dict(zip(order, names))
    sizes = {len(group['params']) for group in groups}
    if len(groups) > 1 and sizes != {1}:
        # Groups of several parameters may have been made in any order.
        return {}
    candidates = []
    for name in could_be_params(weights):
        if not owner or name.startswith(f'{owner}.'):
            candidates.append((name, tuple(local(weights[name]).shape)))
    shapes = [shape_of(states.get(index)) for index in order]
    # Placing from the end on gives the last way.
    first = place(shapes, candidates)
    last = place(shapes[::-1], candidates[::-1])[::-1]
    certain = {}
    for index, name, other in zip(order, first, last):
        if name == other:
            certain[index] = name
    return certain


def place(
    shapes: Sequence[Optional[Shape]], candidates: List[Tuple[str, Shape]]
) -> List[str]:
    """Place each shape at the first candidate that fits, in order.

    Returns:
        The names of the candidates; [] if there is no way to place all.
    """
    names = []
    # A single iterator: the search for a shape goes on behind the last place.
    remaining = iter(candidates)
    for shape in shapes:
        for name, other in remaining:
            if shape in (None, other):
                names.append(name)
                break
        else:
            return []
    return names


def shape_of(state: object) -> Optional[Shape]:
    """Return the shape of a parameter by its moments, or None if unclear."""
    if not isinstance(state, Mapping):
        return None
    shapes: Set[Shape] = set()
    for value in state.values():
        # A nested tensor has no shape.
        if isinstance(value, Tensor) and not value.is_nested:
            shapes.add(tuple(local(value).shape))
    # Step counters have no dimensions, whatever the parameter's shape is.
    if len(shapes) > 1:
        shapes.discard(())
    # Adafactor, for example, has factors of other shapes than the parameter.
    if len(shapes) != 1:
        return None
    return shapes.pop()


def could_be_params(weights: Mapping[str, Tensor]) -> List[str]:
    """Return the names that parameters can have.

    Statistics of norm layers and second names of a tensor are left out.
    """
    stats, seen, names = running_stats(weights), set(), []
    for name, value in weights.items():
        # A sparse or nested tensor has no address, and parameters are dense.
        is_dense = value.layout is torch.strided and not value.is_nested
        if name in stats or not is_dense:
            continue
        values = stored_values(value)
        if values is None:
            names.append(name)
            continue
        # Tied weights are one parameter with several names in state_dict.
        memory = values.data_ptr(), tuple(value.shape), value.dtype
        # All empty tensors have the address 0.
        if value.numel() == 0 or memory not in seen:
            seen.add(memory)
            names.append(name)
    return names


def running_stats(weights: Mapping[str, object]) -> FrozenSet[str]:
    """Return the names of BatchNorm's buffers."""
    last = RUNNING_STATS[-1]
    stats: Set[str] = set()
    for name in weights:
        if name.endswith(last):
            owner = name[: -len(last)]
            names = {owner + key for key in RUNNING_STATS}
            # Another layer may count its batches by the same name.
            if names <= weights.keys():
                stats |= names
    return frozenset(stats)


def walk(node: object, name: str = '') -> Iterator[Tuple[str, Any]]:
    """Yield all tensors and floats at or below a node, with their paths.

    Args:
        node: A tensor, a float, a container, or anything else, which is
            ignored. If a stub of a sharded tensor holds a single shard, the
            shard has the path of the stub.
        name: The path of the node.
    """
    if isinstance(node, STUBS):
        shards: List[object] = []
        for _, value in walk(node.content):
            # Other values of a stub describe its shards.
            if isinstance(value, Tensor):
                shards.append(value)
        node = shards
        if len(shards) == 1:
            node = shards[0]
    if isinstance(node, (list, tuple)):
        node = dict(enumerate(node))
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from walk(value, f'{name}.{key}' if name else str(key))
    elif isinstance(node, (Tensor, float)):
        yield name, node
