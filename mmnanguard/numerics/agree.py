import math
from dataclasses import replace
from typing import Any, List, Tuple

import torch
from torch import Tensor
from torch import distributed as dist

from mmnanguard.core import NanGuardError, Observation, Shard

from .observe import combine

__all__ = ['add_up', 'agree', 'merge']

FLAGS = (
    'loss_is_finite',
    'grad_is_finite',
    'buffers_are_finite',
    'input_is_finite',
    'weights_are_finite',
)
COUNTS = ('num_bad_params', 'num_params')
NORMS = ('grad_norm', 'clip_norm')
FIELDS = (*FLAGS, *COUNTS, *NORMS, 'loss')
SHARD_FIELDS = ('group', 'norm', 'clip_norm')


def agree(seen: Observation, norm_type: float = 2.0) -> Observation:
    """Make what was seen the same on all ranks; collective.

    One small all-reduce, of a matrix in which each rank fills its own row:
    what is suspicious never meets another rank's number, so that no NaN is
    swallowed (a MAX does that) or spread. Must be called on all ranks, as
    DDP's backward must. Without ranks it does nothing.

    Gradients that DDP has reduced are equal on all ranks, others are not:
    the largest norm decides, never a sum, which would count replicas twice.
    Sharded ones add up over the ranks that share them.

    Args:
        seen: By this rank.
        norm_type: Of the clip norm.

    Raises:
        NanGuardError: If another rank does not answer.
    """
    num_ranks = 1
    if dist.is_available() and dist.is_initialized():
        num_ranks = dist.get_world_size()
    if num_ranks > 1:
        return merge(exchange(seen), seen, norm_type)
    return merge([seen], seen, norm_type) if seen.shards else seen


def exchange(seen: Observation) -> List[Observation]:
    """Every rank's observation, in the order of ranks."""
    own = to_row(seen)
    device = torch.device('cpu')
    if 'gloo' not in dist.get_backend():
        device = torch.accelerator.current_accelerator() or device
    rows = torch.zeros(
        dist.get_world_size(), len(own), dtype=torch.float64, device=device
    )
    rows[dist.get_rank()] = torch.tensor(own, dtype=torch.float64)
    add_up(rows)
    return [from_row(row, seen) for row in rows.tolist()]


def add_up(tensor: Tensor) -> None:
    """Sum over all ranks, in place; collective.

    Raises:
        NanGuardError: If another rank does not answer.
    """
    try:
        dist.all_reduce(tensor)
    except RuntimeError as error:  # the backend's
        raise NanGuardError(
            f'rank {dist.get_rank()} of {dist.get_world_size()}: the ranks '
            'could not agree on this update, most likely because another '
            'rank has died or left. Nothing of the update was applied: '
            'weights and optimizer state are as before it. Look for the '
            "first error in the other ranks' logs, then resume from the last "
            'checkpoint.'
        ) from error


def to_row(seen: Observation) -> List[float]:
    numbers = [getattr(seen, name) for name in FIELDS]
    for shard in seen.shards:
        numbers += [getattr(shard, name) for name in SHARD_FIELDS]
    return [0.0 if number is None else float(number) for number in numbers]


def from_row(row: List[float], own: Observation) -> Observation:
    """What all ranks have in common is taken from this one's own."""
    changes: Any = dict(zip(FIELDS, row))
    changes.update({name: bool(changes[name]) for name in FLAGS})
    changes.update({name: int(changes[name]) for name in COUNTS})
    shards = []
    for start in range(len(FIELDS), len(row), len(SHARD_FIELDS)):
        group, norm, clip_norm = row[start : start + len(SHARD_FIELDS)]
        shards.append(Shard(int(group), norm, clip_norm))
    if own.clip_norm is None:
        changes['clip_norm'] = None
        shards = [replace(shard, clip_norm=None) for shard in shards]
    return replace(own, **changes, shards=tuple(shards))


def merge(
    ranks: List[Observation], own: Observation, norm_type: float = 2.0
) -> Observation:
    """One bad rank is enough; the largest norm is the norm."""
    bad = [rank for rank, seen in enumerate(ranks) if not seen.is_clean]
    # Reduced gradients are bad everywhere: what a rank did by itself tells.
    culprits = [rank for rank in bad if not ranks[rank].forward_is_clean]
    loud = [rank for rank in bad if not ranks[rank].loss_is_finite]
    shown = ranks[(loud or culprits or bad or [0])[0]]
    grad_norm = whole_norm(
        [
            (seen.grad_norm, [(s.group, s.norm) for s in seen.shards])
            for seen in ranks
        ],
        2.0,
    )
    clip_norm = None
    if own.clip_norm is not None:
        clip_norm = whole_norm(
            [
                (
                    seen.clip_norm or 0.0,
                    [(s.group, s.clip_norm or 0.0) for s in seen.shards],
                )
                for seen in ranks
            ],
            norm_type,
        )
    flags: Any = {
        name: all(getattr(seen, name) for seen in ranks) for name in FLAGS
    }
    counts: Any = {
        name: max(getattr(seen, name) for seen in ranks) for name in COUNTS
    }
    return replace(
        own,
        **flags,
        **counts,
        # Each rank has its own; what is judged is one number.
        loss=shown.loss if bad else sum(r.loss for r in ranks) / len(ranks),
        grad_norm=grad_norm,
        clip_norm=clip_norm,
        bad_ranks=tuple(culprits or bad),
        shards=(),
    )


def whole_norm(
    ranks: List[Tuple[float, List[Tuple[int, float]]]], norm_type: float
) -> float:
    """The norm of all gradients, the same number on whatever rank.

    Args:
        ranks: Of each its norm of whole gradients, and (group, norm) of its
            parts.
        norm_type: Of all of them.
    """
    norms = [largest([norm for norm, _ in ranks])]
    for parts in zip(*(parts for _, parts in ranks)):
        groups = sorted({group for group, _ in parts})
        norms.append(
            largest(
                [
                    combine([n for g, n in parts if g == group], norm_type)
                    for group in groups
                ]
            )
        )
    return norms[0] if len(norms) == 1 else combine(norms, norm_type)


def largest(norms: List[float]) -> float:
    return math.nan if any(map(math.isnan, norms)) else max(norms)
