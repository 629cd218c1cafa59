import math
from dataclasses import replace
from typing import Any, Dict, List

import torch
from torch import distributed as dist

from mmnanguard.core import NanGuardError, Observation

__all__ = ['agree']

FIELDS = (
    'loss',
    'loss_is_finite',
    'grad_norm',
    'grad_is_finite',
    'clip_norm',
    'buffers_are_finite',
    'input_is_finite',
    'weights_are_finite',
)
FLAGS = tuple(name for name in FIELDS if name.endswith('_finite'))


def agree(seen: Observation) -> Observation:
    """Make what was seen the same on all ranks; collective.

    One small all-reduce, of a matrix in which each rank fills its own row:
    what is suspicious never meets another rank's number, so that no NaN is
    swallowed (a MAX does that) or spread. Must be called on all ranks, as
    DDP's backward must. Without ranks it does nothing.

    Gradients that DDP has reduced are equal on all ranks, others are not:
    the largest norm decides, never a sum, which would count replicas twice.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return seen
    if dist.get_world_size() == 1:
        return seen
    return merge(exchange(seen), seen)


def exchange(seen: Observation) -> List[Observation]:
    """Every rank's observation, in the order of ranks.

    Raises:
        NanGuardError: If another rank does not answer.
    """
    device = 'cuda' if 'nccl' in dist.get_backend() else 'cpu'
    rows = torch.zeros(
        dist.get_world_size(), len(FIELDS), dtype=torch.float64, device=device
    )
    numbers = [getattr(seen, name) for name in FIELDS]
    rows[dist.get_rank()] = torch.tensor(
        [0.0 if number is None else float(number) for number in numbers],
        dtype=torch.float64,
    )
    try:
        dist.all_reduce(rows)
    except RuntimeError as error:  # the backend's
        raise NanGuardError(
            f'rank {dist.get_rank()} of {dist.get_world_size()}: the ranks '
            'could not agree on this update, most likely because another '
            'rank has died or left. Nothing of the update was applied: '
            'weights and optimizer state are as before it. Look for the '
            "first error in the other ranks' logs, then resume from the last "
            'checkpoint.'
        ) from error
    ranks = []
    for row in rows.tolist():
        changes: Dict[str, Any] = dict(zip(FIELDS, row))
        changes.update({name: bool(changes[name]) for name in FLAGS})
        if seen.clip_norm is None:
            del changes['clip_norm']
        ranks.append(replace(seen, **changes))
    return ranks


def merge(ranks: List[Observation], own: Observation) -> Observation:
    """One bad rank is enough; the largest norm is the norm."""
    bad = [rank for rank, seen in enumerate(ranks) if not seen.is_clean]
    # Reduced gradients are bad everywhere: what a rank did by itself tells.
    culprits = [rank for rank in bad if not ranks[rank].forward_is_clean]
    shown = ranks[(culprits or bad or [0])[0]]
    clip_norm = None
    if own.clip_norm is not None:
        clip_norm = largest([seen.clip_norm or 0.0 for seen in ranks])
    flags: Dict[str, Any] = {
        name: all(getattr(seen, name) for seen in ranks) for name in FLAGS
    }
    return replace(
        own,
        **flags,
        loss=shown.loss,
        grad_norm=largest([seen.grad_norm for seen in ranks]),
        clip_norm=clip_norm,
        bad_ranks=tuple(culprits or bad),
    )


def largest(norms: List[float]) -> float:
    return math.nan if any(map(math.isnan, norms)) else max(norms)
