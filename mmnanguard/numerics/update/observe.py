import math
from dataclasses import replace
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor, nn

from mmnanguard.core import Observation, ScaleReading, Shard

from ..base.host_read import read_once
from ..base.norms import tensor_norms
from ..base.shards import Placement, local
from ..snapshot.snapshot import Snapshot

__all__ = ['Reading', 'diagnose', 'observe']

NOTHING_SHARDED = Placement()


class Reading(NamedTuple):
    """What :func:`observe` read, per tensor, for those who ask who it was.

    Attributes:
        norms: L2 norm of each gradient, still scaled, NaN and inf included.
        bad_buffers: (owner, key) of buffers that became non-finite.
        lost_buffers: The same of those that were so before the window.
    """

    norms: List[float]
    bad_buffers: List[Tuple[nn.Module, str]]
    lost_buffers: Sequence[Tuple[nn.Module, str]] = ()


@torch.no_grad()
def observe(
    grads: Sequence[Tensor],
    losses: Sequence[Tensor],
    facts: Mapping[str, Sequence[Tensor]],
    snapshot: Snapshot,
    scale: ScaleReading,
    norm_type: float = 2.0,
    placement: Placement = NOTHING_SHARDED,
) -> Tuple[Observation, Reading]:
    """Look at one update: one read of each gradient, one host read.

    Must come before clipping, which smears one NaN over all gradients.

    Args:
        grads: Still scaled, not clipped.
        losses: What was passed to ``backward``, detached, 0-dim, unscaled.
        facts: Flags raised before the update, 0-dim, non-zero is bad.
        snapshot: Holds the buffers as they were before the window.
        scale: Of the gradients.
        norm_type: Of the clip rule. Another one than 2 costs a second read.
        placement: Which of the gradients are parts of ones that are spread
            over ranks. The norms of those wait in ``Observation.shards``.
    """
    norms = tensor_norms(grads, 2.0)
    groups: Dict[str, Sequence[Tensor]] = {
        'norms': norms,
        'losses': losses,
        'flags': [flag for flags in facts.values() for flag in flags],
        'clip_norms': ()
        if norm_type == 2.0
        else tensor_norms(grads, norm_type),
        **snapshot.facts(),
    }
    read = read_once(groups)  # the one sync of a clean update
    bad_buffers = snapshot.find_bad(read)
    num_bad = sum(not math.isfinite(norm) for norm in read['norms'])
    norm, *norms_of_parts = split_norms(
        read['norms'], 2.0, scale.carried, placement
    )
    clip_norm: Any = None
    clip_norms_of_parts: Sequence[Any] = [None] * len(placement.groups)
    if norm_type != 2.0:
        clip_norm, *clip_norms_of_parts = split_norms(
            read['clip_norms'], norm_type, scale.carried, placement
        )
    seen = Observation(
        loss=sum(read['losses']) if losses else math.nan,
        loss_is_finite=all(map(math.isfinite, read['losses'])),
        grad_norm=norm,
        grad_is_finite=num_bad == 0,
        clip_norm=clip_norm,
        shards=tuple(
            map(Shard, placement.groups, norms_of_parts, clip_norms_of_parts)
        ),
        buffers_are_finite=not bad_buffers,
        weights_are_finite=not snapshot.lost,
        input_is_finite=not any(read['flags']),
        num_bad_params=num_bad,
        num_params=len(grads),
        scale=scale,
    )
    return seen, Reading(read['norms'], bad_buffers, tuple(snapshot.lost))


@torch.no_grad()
def diagnose(
    seen: Observation,
    reading: Reading,
    grads: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> Observation:
    """The second look at a suspicious update; syncs, and is never hot.

    Tells a norm that overflows over finite elements from a non-finite
    element, and finds weights that went bad outside any update.
    """
    suspects = [
        grad
        for grad, norm in zip(grads, reading.norms)
        if not math.isfinite(norm)
    ]
    return replace(
        seen,
        grad_is_finite=not nonfinite_indices(suspects),
        num_bad_params=max(seen.num_bad_params, int(not seen.norm_is_bounded)),
        weights_are_finite=not (
            reading.lost_buffers or nonfinite_indices(weights)
        ),
    )


def nonfinite_indices(tensors: Sequence[Tensor]) -> List[int]:
    """Which tensors have a NaN or Inf element here; one host read."""
    flags = read_once(
        {'bad': [~torch.isfinite(local(tensor)).all() for tensor in tensors]}
    )
    return [index for index, flag in enumerate(flags['bad']) if flag]


def split_norms(
    norms: Sequence[float],
    norm_type: float,
    carried: float,
    placement: Placement,
) -> List[float]:
    """Unscaled norms: of the whole gradients, then of each group's parts."""
    if not placement.groups:
        return [combine(norms, norm_type) / carried]
    places = placement.places
    return [
        combine([n for n, p in zip(norms, places) if p == place], norm_type)
        / carried
        for place in (None, *range(len(placement.groups)))
    ]


def combine(norms: Sequence[float], norm_type: float) -> float:
    """The norm of norms, in float64; NaN wins over inf."""
    if any(map(math.isnan, norms)):
        return math.nan
    largest = max(norms, default=0.0)
    if norm_type == math.inf or not math.isfinite(largest):
        return largest
    if norm_type == 2.0:
        return math.sqrt(math.fsum([norm * norm for norm in norms]))
    if largest == 0.0:
        return 0.0
    # Divided by the largest first: a high power would overflow float64.
    return largest * math.fsum(
        (norm / largest) ** norm_type for norm in norms
    ) ** (1 / norm_type)
