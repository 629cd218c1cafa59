from typing import (
    Any,
    Dict,
    FrozenSet,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
)

from torch import Tensor

from ..base.shards import local
from .stubs import STUBS

__all__ = [
    'GUARD_KEY',
    'optimizer_tensors',
    'optimizers_of',
    'running_stats',
    'walk',
]

# Of a checkpoint: the guard's state, for strategies that save only 'state'
# and 'param_groups' of an optimizer wrapper.
GUARD_KEY = 'nanguard'

# As BatchNorm registers them: buffers, whatever optimizer there is.
RUNNING_STATS = ('running_mean', 'running_var', 'num_batches_tracked')
Shape = Tuple[int, ...]


def optimizers_of(saved: Any) -> Dict[str, Mapping[str, Any]]:
    """The states of a checkpoint's optimizers, by name; '' for the one of a
    run without ``OptimWrapperDict``.
    """
    if not isinstance(saved, Mapping):
        return {}
    if 'state' in saved or 'param_groups' in saved:
        return {'': saved}
    return {
        str(name): state
        for name, state in saved.items()
        if isinstance(state, Mapping)
    }


def optimizer_tensors(
    saved: Any, weights: Mapping[str, Tensor]
) -> Iterator[Tuple[Optional[str], str, Union[Tensor, float]]]:
    """All tensors and floats of a checkpoint's optimizers.

    Args:
        saved: What lies under the checkpoint's key 'optimizer'.
        weights: The model's tensors, in the order of its ``state_dict``.

    Yields:
        The parameter, None where it is not certain; a name to show; a value.
    """
    for owner, optimizer in optimizers_of(saved).items():
        start = f'{owner}: ' if owner else ''
        states = optimizer.get('state')
        groups = optimizer.get('param_groups') or ()
        if not isinstance(states, Mapping):
            # Another format than PyTorch's: shown as it is.
            for path, value in walk(optimizer):
                yield None, start + path, value
            continue
        for index, group in enumerate(groups):
            if isinstance(group.get('lr'), (Tensor, float)):
                yield None, f'{start}group {index} lr', group['lr']
        params = param_names(states, groups, weights, owner)
        for index, state in states.items():
            param = params.get(index)
            for path, value in walk(state):
                name = f'{param or f"state {index}"} {path}'
                yield param, start + name, value


def param_names(
    states: Mapping[Any, Any],
    groups: Sequence[Mapping[str, Any]],
    weights: Mapping[str, Tensor],
    owner: str = '',
) -> Dict[Any, str]:
    """Names of those of an optimizer's parameters for which only one fits.

    An optimizer saves no names. Its parameters come in the order of the
    model's ``state_dict``, in which there are buffers as well, if there is a
    single group, or a group for each, as MMEngine makes them. A parameter has
    the shape of its moments; of all ways to place the parameters among the
    tensors of the model, the first and the last must agree.

    Args:
        states: By index; by name where FSDP saved them.
        groups: With the indices of their parameters.
        weights: The model's tensors.
        owner: Name of the optimizer: it is taken for that of a submodule, as
            usual for GANs, else nothing is certain.
    """
    if states and all(isinstance(index, str) for index in states):
        return {name: name for name in states}
    order = [index for group in groups for index in group['params']]
    names = [n for group in groups for n in group.get('param_names') or ()]
    if order and len(names) == len(order):
        return dict(zip(order, names))
    if len(groups) > 1 and any(len(group['params']) != 1 for group in groups):
        return {}  # groups may have been made in any order
    start = f'{owner}.' if owner else ''
    candidates = [
        (name, tuple(local(weights[name]).shape))
        for name in could_be_params(weights)
        if name.startswith(start)
    ]
    shapes = [shape_of(states.get(index)) for index in order]
    first = place(shapes, candidates)
    last = place(shapes[::-1], candidates[::-1])[::-1]
    return {
        index: name
        for index, name, other in zip(order, first, last)
        if name == other
    }


def place(
    shapes: Sequence[Optional[Shape]], candidates: List[Tuple[str, Shape]]
) -> List[str]:
    """Each shape at the first candidate that fits, in order; [] if none."""
    names = []
    remaining = iter(candidates)
    for shape in shapes:
        for name, other in remaining:
            if shape in (None, other):
                names.append(name)
                break
        else:
            return []
    return names


def shape_of(state: Any) -> Optional[Shape]:
    """A parameter's, by its moments; None where they do not tell."""
    if not isinstance(state, Mapping):
        return None
    values = [v for v in state.values() if isinstance(v, Tensor)]
    shapes = {tuple(local(value).shape) for value in values}
    # Step counters have no dimensions, whatever the parameter has.
    shapes = {shape for shape in shapes if shape} or shapes
    return shapes.pop() if len(shapes) == 1 else None


def could_be_params(weights: Mapping[str, Tensor]) -> List[str]:
    """Names without statistics of norms and second names of a tensor."""
    stats, seen, names = running_stats(weights), set(), []
    for name, value in weights.items():
        if name in stats or value.is_sparse:
            continue
        memory = local(value).data_ptr(), tuple(value.shape), value.dtype
        if value.numel() == 0 or memory not in seen:
            seen.add(memory)
            names.append(name)
    return names


def running_stats(weights: Mapping[str, Any]) -> FrozenSet[str]:
    """Names of BatchNorm's buffers."""
    owners = [
        name[: -len(RUNNING_STATS[-1])]
        for name in weights
        if name.endswith(RUNNING_STATS[-1])
    ]
    groups = [[owner + key for key in RUNNING_STATS] for owner in owners]
    return frozenset(
        name
        for group in groups
        if all(name in weights for name in group)
        for name in group
    )


def walk(node: Any, name: str = '') -> Iterator[Tuple[str, Any]]:
    """All tensors and floats at or below a node, with their paths; those of
    a sharded tensor by its own name.
    """
    if isinstance(node, STUBS):
        shards = [v for _, v in walk(node.content) if isinstance(v, Tensor)]
        node = shards[0] if len(shards) == 1 else shards
    if isinstance(node, (list, tuple)):
        node = dict(enumerate(node))
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from walk(value, f'{name}.{key}' if name else str(key))
    elif isinstance(node, (Tensor, float)):
        yield name, node
