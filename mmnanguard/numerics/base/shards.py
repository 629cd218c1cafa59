from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple

import torch.distributed as dist
from torch import Tensor, nn

__all__ = ['Placement', 'Shards', 'is_sharded', 'local']


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor, in the same memory; else the tensor."""
    return tensor.to_local() if hasattr(tensor, 'to_local') else tensor


class Placement(NamedTuple):
    """Which of some gradients are parts, and of which whole.

    Attributes:
        places: Per gradient: None for a whole one, else an index into
            ``groups``.
        groups: Sets of ranks that share a whole, each by its lowest rank.
            The same number on all ranks, in the same order.
    """

    places: Tuple[Optional[int], ...] = ()
    groups: Tuple[int, ...] = ()


class Shards:
    """Finds the parameters that are spread over ranks: those of FSDP in both
    generations, and every DTensor.

    Args:
        params: The optimizer's.
        models: That hold them; FSDP1 leaves no trace of its group in them.
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
        if not self._groups:
            return Placement()
        return Placement(
            tuple(self._index.get(id(param)) for param in params), self._groups
        )


def is_sharded(model: nn.Module) -> bool:
    """Does any rank hold but a part of some parameter?"""
    params = list(model.parameters())
    return bool(Shards(params, [model]).place(params).groups)


def shard_ranks(param: Any) -> Tuple[int, ...]:
    """The ranks that together hold a DTensor; none for a plain tensor."""
    if not hasattr(param, 'to_local'):
        return ()
    mesh = param.device_mesh
    place = tuple(
        own if placement.is_replicate() else slice(None)
        for placement, own in zip(param.placements, mesh.get_coordinate())
    )
    return tuple(mesh.mesh[place].flatten().tolist())


def fsdp_groups(models: Iterable[nn.Module]) -> Dict[int, Tuple[int, ...]]:
    """Per parameter that FSDP1 holds, the ranks that share it."""
    from torch.distributed.fsdp import (
        FullyShardedDataParallel,
        ShardingStrategy,
    )

    found: Dict[int, Tuple[int, ...]] = {}
    for model in models:
        # From the outside in, so that the innermost has the last word.
        for module in FullyShardedDataParallel.fsdp_modules(model):
            is_whole = module.sharding_strategy is ShardingStrategy.NO_SHARD
            ranks = dist.get_process_group_ranks(module.process_group)
            for param in module.parameters():
                found[id(param)] = () if is_whole else tuple(ranks)
    return found
