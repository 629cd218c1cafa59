"""The agreement of all ranks on one observation."""

import math
from collections import defaultdict
from dataclasses import replace
from operator import attrgetter
from typing import DefaultDict, List, Sequence, Tuple

import torch
from torch import Tensor
from torch import distributed as dist

from mmnanguard.core import NanGuardError, Observation

from .observe import combine

__all__ = ['add_up', 'agree', 'merge', 'ranks_that', 'take_largest']

FLAGS = (
    'loss_is_finite',
    'grad_is_finite',
    'buffers_are_finite',
    'input_is_finite',
    'weights_are_finite',
    'last_step_is_finite',
    'step_is_finite',
)
COUNTS = ('num_bad_params', 'num_params', 'num_inf_params')
NORMS = ('grad_norm', 'clip_norm')
# Two properties are among them, because each rank judges its own facts.
FIELDS = ('is_clean', 'forward_is_clean', *FLAGS, *COUNTS, *NORMS, 'loss')
SHARD_FIELDS = ('group', 'norm', 'clip_norm')
READ_FIELDS = attrgetter(*FIELDS)
READ_SHARD_FIELDS = attrgetter(*SHARD_FIELDS)


def agree(seen: Observation, norm_type: float = 2.0) -> Observation:
    """Return an observation that is the same on all ranks. Collective.

    Ranks exchange a matrix in one small all-reduce. Each rank fills only its
    own row, so no number meets that of another rank, and no NaN is swallowed
    (as by a MAX) or spread. All ranks must call this, as they must call
    DDP's backward. A single process only combines the norms of its shards.

    Gradients that DDP has reduced are equal on all ranks, and other
    gradients are not. So the largest norm counts; a sum would count replicas
    twice. Norms of sharded gradients add up over the ranks that share them.

    Args:
        seen: The observation of this rank.
        norm_type: The type of the clip norm.

    Raises:
        NanGuardError: If another rank does not answer.
    """
    num_ranks = 1
    if dist.is_available() and dist.is_initialized():
        num_ranks = dist.get_world_size()
    if num_ranks > 1:
        return merge_rows(exchange(seen), seen, norm_type)
    # One rank alone may still hold DTensors, whose norms are to be combined.
    return merge([seen], seen, norm_type) if seen.shards else seen


def ranks_that(*flags: bool) -> Tuple[Tuple[int, ...], ...]:
    """Return for each flag the ranks that call this with True. Collective.

    All flags travel in one message.

    Raises:
        NanGuardError: If another rank does not answer.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return tuple([(0,) * flag for flag in flags])
    answers = torch.zeros(len(flags), dist.get_world_size())
    answers[:, dist.get_rank()] = torch.tensor(flags).float()
    answers = answers.to(exchange_device())
    add_up(answers)
    ranks = []
    for row in answers.tolist():
        ranks.append(tuple([rank for rank, flag in enumerate(row) if flag]))
    return tuple(ranks)


def take_largest(numbers: Sequence[float]) -> List[float]:
    """Return the largest of each number of all ranks. Collective.

    A single process gets its own numbers. None of them may be NaN.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return list(numbers)
    row = torch.tensor(numbers, device=exchange_device())
    dist.all_reduce(row, op=dist.ReduceOp.MAX)
    largest: List[float] = row.tolist()
    return largest


def exchange_device() -> torch.device:
    """Return the device on which ranks exchange numbers."""
    # Only gloo reduces tensors on the host; NCCL needs them on the device.
    if 'gloo' in dist.get_backend():
        return torch.device('cpu')
    if torch.cuda.is_available():
        return torch.device('cuda')
    # torch.accelerator came with PyTorch 2.6. Devices from outside of PyTorch,
    # such as Ascend's with its HCCL, share one name.
    if not hasattr(torch, 'accelerator'):
        return torch.device(torch._C._get_privateuse1_backend_name())
    return torch.accelerator.current_accelerator() or torch.device('cpu')


def exchange(seen: Observation) -> Tensor:
    """Return one row of numbers per rank. Collective."""
    row = to_row(seen)
    rows = torch.zeros(
        dist.get_world_size(),
        len(row),
        dtype=torch.float64,
        device=exchange_device(),
    )
    # A sum with zeros keeps every bit, NaN included.
    rows[dist.get_rank()] = torch.tensor(row, dtype=torch.float64)
    add_up(rows)
    return rows.cpu()


def add_up(tensor: Tensor) -> None:
    """Sum a tensor over all ranks in place. Collective.

    Raises:
        NanGuardError: If another rank does not answer.
    """
    try:
        dist.all_reduce(tensor)
    except RuntimeError as error:  # raised by the backend
        raise NanGuardError(
            f'rank {dist.get_rank()} of {dist.get_world_size()}: the ranks '
            'could not agree on this update, most likely because another '
            'rank has died or left. Nothing of the update was applied: '
            'weights and optimizer state are as before it. Look for the '
            "first error in the other ranks' logs, then resume from the last "
            'checkpoint.'
        ) from error


def to_row(seen: Observation) -> List[float]:
    """Return an observation as numbers, in the order of ``FIELDS``."""
    numbers = list(READ_FIELDS(seen))
    for shard in seen.shards:
        numbers += READ_SHARD_FIELDS(shard)
    row = []
    for number in numbers:
        # A clip norm of None means that there is none on any rank. Asking
        # for truth instead would lose the sign of a loss of -0.0.
        row.append(0.0 if number is None else float(number))
    return row


def merge(
    ranks: Sequence[Observation], shared: Observation, norm_type: float = 2.0
) -> Observation:
    """Merge the observations of several ranks into one.

    Args:
        ranks: The observations.
        shared: The observation that holds what all ranks have in common.
        norm_type: The type of the clip norm.
    """
    rows = torch.tensor([to_row(seen) for seen in ranks], dtype=torch.float64)
    return merge_rows(rows, shared, norm_type)


def merge_rows(
    rows: Tensor, shared: Observation, norm_type: float
) -> Observation:
    """Merge one row per rank: one bad rank is enough to be bad.

    Works by columns, because one object per rank would take 50 ms of an
    update on 4,096 ranks.

    Args:
        rows: The rows, (ranks, fields), float64, on the CPU.
        shared: The observation that holds what all ranks have in common.
        norm_type: The type of the clip norm.
    """
    columns = dict(zip(FIELDS, rows.unbind(1)))
    # aminmax returns NaN for a column with NaN.
    smallest, greatest = rows.aminmax(dim=0)
    lowest = dict(zip(FIELDS, smallest.tolist()))
    highest = dict(zip(FIELDS, greatest.tolist()))
    # Ranks have different losses; their mean is judged.
    losses = columns['loss'].tolist()
    loss = sum(losses) / len(losses)
    bad, culprits, loud = [], [], []
    if not lowest['is_clean']:
        # Reduced gradients are bad on all ranks, so the forward passes and
        # losses show the culprits.
        bad = ranks_without(columns['is_clean'])
        culprits = ranks_without(columns['forward_is_clean'])
        loud = ranks_without(columns['loss_is_finite'])
        # The loss of a culprit says more than the mean.
        loss = losses[(loud or culprits or bad)[0]]
    shards = rows[:, len(FIELDS) :].t().tolist()
    size = len(SHARD_FIELDS)
    # Each shard has ``size`` columns, in the order of SHARD_FIELDS.
    groups, norms, clip_norms = (shards[part::size] for part in range(size))
    clip_norm = None
    if shared.clip_norm is not None:
        clip_norm = whole_norm(
            highest['clip_norm'], groups, clip_norms, norm_type
        )
    return replace(
        shared,
        loss_is_finite=bool(lowest['loss_is_finite']),
        grad_is_finite=bool(lowest['grad_is_finite']),
        buffers_are_finite=bool(lowest['buffers_are_finite']),
        input_is_finite=bool(lowest['input_is_finite']),
        weights_are_finite=bool(lowest['weights_are_finite']),
        last_step_is_finite=bool(lowest['last_step_is_finite']),
        step_is_finite=bool(lowest['step_is_finite']),
        num_bad_params=int(highest['num_bad_params']),
        num_params=int(highest['num_params']),
        num_inf_params=int(highest['num_inf_params']),
        loss=loss,
        grad_norm=whole_norm(highest['grad_norm'], groups, norms, 2.0),
        clip_norm=clip_norm,
        bad_ranks=tuple(culprits or bad),
        shards=(),
    )


def ranks_without(flags: Tensor) -> List[int]:
    """Return the ranks whose flag is 0."""
    ranks: List[int] = (flags == 0).nonzero().flatten().tolist()
    return ranks


def whole_norm(
    whole: float,
    groups: List[List[float]],
    norms: List[List[float]],
    norm_type: float,
) -> float:
    """Return the norm of all gradients, which is the same on all ranks.

    Args:
        whole: The norm of the gradients that are not sharded.
        groups: For each kind of shard, the group of each rank.
        norms: For each kind of shard, the norm on each rank.
        norm_type: The type of all these norms.
    """
    wholes = [whole]
    for group_column, norm_column in zip(groups, norms):
        parts: DefaultDict[float, List[float]] = defaultdict(list)
        for group, norm in zip(group_column, norm_column):
            parts[group].append(norm)
        # Groups that hold replicas of one another agree, up to rounding.
        norms_of_groups = [combine(p, norm_type) for p in parts.values()]
        wholes.append(largest(norms_of_groups))
    if len(wholes) == 1:
        return whole
    return combine(wholes, norm_type)


def largest(norms: List[float]) -> float:
    """Return the largest norm; NaN takes precedence."""
    # max() skips a NaN that is not the first.
    if any(map(math.isnan, norms)):
        return math.nan
    return max(norms)
