import math
from collections import defaultdict
from dataclasses import replace
from typing import Any, DefaultDict, List, Sequence

import torch
from torch import Tensor
from torch import distributed as dist

from mmnanguard.core import NanGuardError, Observation

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
# What each rank has judged by itself comes first.
FIELDS = ('is_clean', 'forward_is_clean', *FLAGS, *COUNTS, *NORMS, 'loss')
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
        return merge_rows(exchange(seen), seen, norm_type)
    return merge([seen], seen, norm_type) if seen.shards else seen


def exchange(seen: Observation) -> Tensor:
    """A row of numbers from each rank, in the order of ranks."""
    own = to_row(seen)
    device = torch.device('cpu')
    if 'gloo' not in dist.get_backend():
        device = torch.accelerator.current_accelerator() or device
    rows = torch.zeros(
        dist.get_world_size(), len(own), dtype=torch.float64, device=device
    )
    rows[dist.get_rank()] = torch.tensor(own, dtype=torch.float64)
    add_up(rows)
    return rows.cpu()


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


def merge(
    ranks: Sequence[Observation], own: Observation, norm_type: float = 2.0
) -> Observation:
    """What these ranks saw, as one observation."""
    rows = torch.tensor([to_row(seen) for seen in ranks], dtype=torch.float64)
    return merge_rows(rows, own, norm_type)


def merge_rows(
    rows: Tensor, own: Observation, norm_type: float
) -> Observation:
    """One bad rank is enough; the largest norm is the norm.

    Goes by columns: an object for each rank would take 50 ms of an update on
    4,096 ranks.

    Args:
        rows: What each rank saw, (ranks, fields), float64, on the CPU.
        own: Holds what all ranks have in common.
        norm_type: Of the clip norm.
    """
    of = dict(zip(FIELDS, rows.unbind(1)))
    # NaN comes out as NaN.
    lowest, highest = (
        dict(zip(FIELDS, row.tolist())) for row in rows.aminmax(dim=0)
    )
    flags: Any = {name: bool(lowest[name]) for name in FLAGS}
    counts: Any = {name: int(highest[name]) for name in COUNTS}
    # Each rank has its own; what is judged is one number.
    losses = of['loss'].tolist()
    loss = sum(losses) / len(losses)
    bad, culprits, loud = [], [], []
    if not lowest['is_clean']:
        # Reduced gradients are bad everywhere: what a rank did by itself
        # tells.
        bad, culprits, loud = (
            (of[name] == 0).nonzero().flatten().tolist()
            for name in ('is_clean', 'forward_is_clean', 'loss_is_finite')
        )
        loss = losses[(loud or culprits or bad)[0]]
    shards = rows[:, len(FIELDS) :].t().tolist()
    size = len(SHARD_FIELDS)
    groups, norms, clip_norms = (shards[part::size] for part in range(size))
    clip_norm = None
    if own.clip_norm is not None:
        clip_norm = whole_norm(
            highest['clip_norm'], groups, clip_norms, norm_type
        )
    return replace(
        own,
        **flags,
        **counts,
        loss=loss,
        grad_norm=whole_norm(highest['grad_norm'], groups, norms, 2.0),
        clip_norm=clip_norm,
        bad_ranks=tuple(culprits or bad),
        shards=(),
    )


def whole_norm(
    whole: float,
    groups: List[List[float]],
    norms: List[List[float]],
    norm_type: float,
) -> float:
    """The norm of all gradients, the same number on whatever rank.

    Args:
        whole: The norm of those that no rank shares with another.
        groups: Of each kind of part, each rank's group.
        norms: Of each kind of part, the norm of each rank's.
        norm_type: Of all of them.
    """
    wholes = [whole]
    for of_ranks in zip(groups, norms):
        parts: DefaultDict[float, List[float]] = defaultdict(list)
        for group, norm in zip(*of_ranks):
            parts[group].append(norm)
        wholes.append(
            largest([combine(own, norm_type) for own in parts.values()])
        )
    return whole if len(wholes) == 1 else combine(wholes, norm_type)


def largest(norms: List[float]) -> float:
    return math.nan if any(map(math.isnan, norms)) else max(norms)
