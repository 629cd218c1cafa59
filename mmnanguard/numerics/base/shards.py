"""Parameters that are sharded over ranks: FSDP and DTensor."""

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

__all__ = ['Placement', 'Shards', 'is_sharded', 'local']


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a DTensor, or a plain tensor as it is.

    The part shares memory with the DTensor.
    """
    return tensor.to_local() if hasattr(tensor, 'to_local') else tensor


class Placement(NamedTuple):
    """The sharding of some gradients.

    Attributes:
        places: Per gradient, None if it is whole, else an index into
            ``groups``.
        groups: The sets of ranks that share a gradient, each set as its
            lowest rank. All ranks have equally many groups in one order.
    """

    places: Tuple[Optional[int], ...] = ()
    groups: Tuple[int, ...] = ()


class Shards:
    """Knows which parameters are sharded, by FSDP1, FSDP2 or as a DTensor.

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
        flat = [p for p in params if getattr(p, '_fsdp_flattened', False)]
        ranks_of = fsdp_groups(models) if flat else {}
        for param in params:
            ranks = ranks_of.get(id(param)) or shard_ranks(param)
            if len(ranks) < 2:
                continue
            if ranks not in groups:
                groups.append(ranks)
            self._index[id(param)] = groups.index(ranks)
        self._groups = tuple(map(min, groups))

    def place(self, params: Iterable[Tensor]) -> Placement:
        """Return the sharding of the gradients of some parameters."""
        if not self._groups:
            return Placement()
        return Placement(
            tuple(self._index.get(id(param)) for param in params), self._groups
        )


def is_sharded(model: nn.Module) -> bool:
    """Whether any parameter of a model is sharded."""
    params = list(model.parameters())
    return bool(Shards(params, [model]).place(params).groups)


def shard_ranks(param: Any) -> Tuple[int, ...]:
    """Return the ranks that share a DTensor; none for a plain tensor."""
    if not hasattr(param, 'to_local'):
        return ()
    mesh = param.device_mesh
    # This rank's coordinate along replicated dimensions of the mesh, all
    # coordinates along the others.
    index: List[Union[int, slice]] = []
    for placement, here in zip(param.placements, mesh.get_coordinate()):
        index.append(here if placement.is_replicate() else slice(None))
    return tuple(mesh.mesh[tuple(index)].flatten().tolist())


def fsdp_groups(models: Iterable[nn.Module]) -> Dict[int, Tuple[int, ...]]:
    """Return the ranks that share each parameter of FSDP1, by id."""
    from torch.distributed.fsdp import (
        FullyShardedDataParallel,
        ShardingStrategy,
    )

    groups: Dict[int, Tuple[int, ...]] = {}
    for model in models:
        # Modules come from the outside in, and the innermost one counts.
        for module in FullyShardedDataParallel.fsdp_modules(model):
            is_whole = module.sharding_strategy is ShardingStrategy.NO_SHARD
            ranks = dist.get_process_group_ranks(module.process_group)
            for param in module.parameters():
                groups[id(param)] = () if is_whole else tuple(ranks)
    return groups
