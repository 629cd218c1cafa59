"""Parameters that are sharded over ranks: by FSDP1, FSDP2 or as DTensors.

A norm of a sharded gradient is a sum over ranks. :class:`Shards` says which
ranks share a gradient, and ``update.agree`` sums over them.
"""

from typing import (
    Any,
    Dict,
    Iterable,
    List,
    NamedTuple,
    Optional,
    Tuple,
    Union,
)

import torch.distributed as dist
from torch import Tensor, nn

__all__ = ['Placement', 'Shards', 'is_gathered', 'is_sharded', 'local']


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a DTensor, or a plain tensor as it is.

    The part shares memory with the DTensor.
    """
    # By attribute: the class is in torch.distributed.tensor since PyTorch 2.5
    # and was in torch.distributed._tensor before.
    if hasattr(tensor, 'to_local'):
        part: Tensor = tensor.to_local()
        return part
    return tensor


class Placement(NamedTuple):
    """The sharding of some gradients.

    Attributes:
        places: The index into ``groups`` of each gradient; None for a
            gradient that is whole on every rank.
        groups: The sets of ranks that share a gradient, with the lowest rank
            in place of its set. All ranks have equally many groups, in the
            same order.
    """

    places: Tuple[Optional[int], ...] = ()
    groups: Tuple[int, ...] = ()


class Shards:
    """The sharding of an optimizer's parameters.

    Args:
        params: The optimizer's parameters.
        models: The models that hold the parameters, because a parameter of
            FSDP1 does not know its process group.
    """

    def __init__(
        self, params: Iterable[Tensor], models: Iterable[nn.Module]
    ) -> None:
        self._index: Dict[int, int] = {}
        groups: List[Tuple[int, ...]] = []
        params = list(params)
        ranks_of: Dict[int, Tuple[int, ...]] = {}
        # Only for parameters of FSDP1, because importing FSDP takes long.
        if any(map(is_flattened, params)):
            ranks_of = fsdp_groups(models)
        for param in params:
            ranks = ranks_of.get(id(param)) or shard_ranks(param)
            # A group of a single rank holds the whole parameter.
            if len(ranks) < 2:
                continue
            # In order of the parameters, which is the same on all ranks.
            if ranks not in groups:
                groups.append(ranks)
            self._index[id(param)] = groups.index(ranks)
        self._groups = tuple(map(min, groups))

    def place(self, params: Iterable[Tensor]) -> Placement:
        """Return the sharding of the gradients of some parameters."""
        if not self._groups:
            return Placement()
        places = tuple(map(self._index.get, map(id, params)))
        return Placement(places, self._groups)


def is_sharded(model: nn.Module) -> bool:
    """Whether any parameter of a model is sharded."""
    if is_gathered(model):
        return True
    params = list(model.parameters())
    return bool(Shards(params, [model]).place(params).groups)


def is_gathered(model: nn.Module) -> bool:
    """Whether parameters have content only while a pass runs (ZeRO 3)."""
    # The mark that deepspeed/runtime/zero/partition_parameters.py sets.
    return any(hasattr(param, 'ds_tensor') for param in model.parameters())


def is_flattened(param: Tensor) -> bool:
    """Whether FSDP1 manages a parameter."""
    # The mark that torch/distributed/fsdp/_common_utils.py sets.
    return getattr(param, '_fsdp_flattened', False)


def shard_ranks(param: Any) -> Tuple[int, ...]:
    """Return the ranks that share a DTensor; () for a plain tensor."""
    if not hasattr(param, 'to_local'):
        return ()
    mesh = param.device_mesh
    # This rank's coordinate along replicated dimensions of the mesh, all
    # coordinates along sharded dimensions.
    index: List[Union[int, slice]] = []
    for placement, here in zip(param.placements, mesh.get_coordinate()):
        if placement.is_replicate():
            index.append(here)
        else:
            index.append(slice(None))
    return tuple(mesh.mesh[tuple(index)].flatten().tolist())


def fsdp_groups(models: Iterable[nn.Module]) -> Dict[int, Tuple[int, ...]]:
    """Return the ranks that share each parameter of FSDP1, by id."""
    # Not at the top: PyTorch may be built without torch.distributed.
    from torch.distributed.fsdp import (
        FullyShardedDataParallel,
        ShardingStrategy,
    )

    groups: Dict[int, Tuple[int, ...]] = {}
    for model in models:
        # Modules come from the outside in, so that the innermost module of a
        # parameter has the last word.
        for module in FullyShardedDataParallel.fsdp_modules(model):
            ranks: Tuple[int, ...] = ()
            # With NO_SHARD, each rank of the group holds all of a parameter.
            if module.sharding_strategy is not ShardingStrategy.NO_SHARD:
                group = module.process_group
                ranks = tuple(dist.get_process_group_ranks(group))
            for param in module.parameters():
                groups[id(param)] = ranks
    return groups
