"""One look at an update: device tensors become an ``Observation``."""

import math
from dataclasses import replace
from itertools import chain
from typing import (
    Dict,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

import torch
from torch import Tensor

from mmnanguard.core import Observation, ScaleReading, Shard

from ..base.host_read import read_once
from ..base.norms import tensor_norms
from ..base.shards import Placement
from ..base.tensor_kinds import real_values
from ..snapshot.change_tracker import KnownMasks
from ..snapshot.snapshot import Changes, Snapshot
from ..snapshot.tensor_backup import TensorBackup

__all__ = ['Reading', 'diagnose', 'find_suspects', 'observe']

NOTHING_SHARDED = Placement()


class Reading(NamedTuple):
    """The numbers per tensor that :func:`observe` read, to find culprits.

    Attributes:
        norms: The L2 norm of each gradient, still scaled; NaN and inf are
            possible.
        changes: The changes that the window made to buffers and parameters.
    """

    norms: List[float]
    changes: Changes = Changes()


@torch.no_grad()
def observe(
    grads: Sequence[Tensor],
    losses: Sequence[Tensor],
    facts: Mapping[str, Sequence[Tensor]],
    snapshot: Snapshot,
    scale: ScaleReading,
    norm_type: float = 2.0,
    placement: Placement = NOTHING_SHARDED,
    settings: Sequence[Tensor] = (),
) -> Tuple[Observation, Reading]:
    """Observe one update with one pass over the gradients and one host read.

    Must run before clipping, which spreads one NaN over all gradients.

    Args:
        grads: The gradients, still scaled and not clipped.
        losses: The losses passed to ``backward``, detached, 0-dim, unscaled.
        facts: Flags that were raised before the update, 0-dim; non-zero
            means bad.
        snapshot: The copies of buffers and parameters of this window.
        scale: The loss scale of the gradients.
        norm_type: The norm type of the clip rule. Any other type than 2
            takes a second pass over the gradients.
        placement: The sharding of the gradients. Norms of sharded gradients
            are reported in ``Observation.shards``.
        settings: Settings of the optimizer that are on a device.
    """
    norms = tensor_norms(grads, 2.0)
    comparison = snapshot.compare()
    groups: Dict[str, Sequence[Tensor]] = {
        'norms': norms,
        'losses': losses,
        'flags': list(chain.from_iterable(facts.values())),
        'clip_norms': [],
        'settings': settings,
        **comparison.scalars,
    }
    if norm_type != 2.0:
        groups['clip_norms'] = tensor_norms(grads, norm_type)
    read = read_once(groups)  # the one sync of a clean update
    changes = snapshot.learn(comparison, read)
    # A norm is finite only if all elements are. diagnose() looks closer.
    num_bad = len(grads) - sum(map(math.isfinite, read['norms']))
    norm, *norms_of_parts = split_norms(
        read['norms'], 2.0, scale.carried, placement
    )
    clip_norm: Optional[float] = None
    clip_norms_of_parts: Sequence[Optional[float]]
    clip_norms_of_parts = [None] * len(placement.groups)
    if norm_type != 2.0:
        clip_norm, *clip_norms_of_parts = split_norms(
            read['clip_norms'], norm_type, scale.carried, placement
        )
    # Without a backward pass of the wrapper there is no loss to judge.
    loss = sum(read['losses']) if losses else math.nan
    seen = Observation(
        loss=loss,
        loss_is_finite=all(map(math.isfinite, read['losses'])),
        grad_norm=norm,
        grad_is_finite=num_bad == 0,
        clip_norm=clip_norm,
        shards=tuple(
            map(Shard, placement.groups, norms_of_parts, clip_norms_of_parts)
        ),
        buffers_are_finite=not changes.bad,
        weights_are_finite=not changes.lost,
        input_is_finite=not any(read['flags']),
        step_is_finite=all(map(math.isfinite, read['settings'])),
        num_bad_params=num_bad,
        num_params=len(grads),
        scale=scale,
    )
    return seen, Reading(read['norms'], changes)


@torch.no_grad()
def find_suspects(
    seen: Observation,
    reading: Reading,
    snapshot: Snapshot,
    weights: Sequence[Tensor],
) -> Tuple[Reading, List[Tensor]]:
    """Find state that may have been bad before a suspicious update.

    Syncs the device.

    Args:
        seen: The observation of this rank.
        reading: The numbers that :func:`observe` read.
        snapshot: The copies of this window, which is still open.
        weights: All parameters, trained or not.

    Returns:
        The reading with the constant buffers that have gone bad, and the
        parameters that must be finite.
    """
    changes, tracker = reading.changes, snapshot.tracker
    nan_is_harmless = True
    # If the loss is finite, it does not depend on any bad constant.
    if not seen.loss_is_finite:
        lost = [*changes.lost, *snapshot.find_lost(changes)]
        reading = reading._replace(changes=changes._replace(lost=lost))
        tracker.masks.note_bad_loss()
        nan_is_harmless = tracker.has_committed
    judged = weights_to_judge(
        weights, tracker.masks, changes.backups, nan_is_harmless
    )
    return reading, judged


def weights_to_judge(
    weights: Sequence[Tensor],
    masks: KnownMasks,
    changed: Iterable[TensorBackup],
    nan_is_harmless: bool,
) -> List[Tensor]:
    """Return the parameters whose elements must all be finite now.

    Left out are parameters that are non-finite by design, and parameters that
    this window's forward passes changed and that were sound before: the
    window's end puts them back. Syncs the device if there are such
    parameters.

    Args:
        weights: The parameters.
        masks: The parameters that were non-finite before the first window.
        changed: The backups of tensors that the window has changed, and that
            can be restored.
        nan_is_harmless: Whether NaN that was there before the first window is
            known to do no harm, because the loss is or was finite beside it.
    """
    had_nan = masks.had_nan()
    restored = set()
    for backup in changed:
        if backup.tensor in had_nan:
            backup.was_finite = False
        # A copy that is bad itself puts back what was bad before.
        if backup.is_param and not backup.went_bad_before():
            restored.add(id(backup.tensor))
    judged = []
    for param in weights:
        if id(param) in restored:
            continue
        if param in had_nan:
            if had_nan[param] and (
                nan_is_harmless or is_unused(param, masks.num_bad_losses)
            ):
                continue
            numbers = real_values(param)
            if numbers is None or not bool(numbers.isnan().any()):
                continue
        judged.append(param)
    return judged


def is_unused(param: Tensor, num_bad_losses: int) -> bool:
    """Whether a bad loss may have another reason than NaN in a parameter.

    Syncs the device.

    Args:
        param: A parameter that held NaN before the first window.
        num_bad_losses: Number of bad losses so far.
    """
    numbers = real_values(param)
    grad = None if param.grad is None else real_values(param.grad)
    if numbers is None or grad is None or grad.shape != numbers.shape:
        # A single bad loss may come from a bad sample.
        return num_bad_losses == 1
    # Elements that the loss depends on have bad gradients.
    return not bool((numbers.isnan() & ~grad.isfinite()).any())


@torch.no_grad()
def diagnose(
    seen: Observation,
    reading: Reading,
    grads: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> Observation:
    """Take a second look at a suspicious update. Syncs the device.

    Distinguishes a non-finite element from a norm that overflows over finite
    elements, and finds weights that became bad outside of any update.
    """
    suspects = []
    for grad, norm in zip(grads, reading.norms):
        if not math.isfinite(norm):
            suspects.append(grad)
    # Buffers that were lost outside of any update count as weights.
    is_lost = bool(reading.changes.lost) or bool(nonfinite_indices(weights))
    num_inf = 0
    # A bad loss explains bad gradients, whatever the scale.
    if suspects and seen.loss_is_finite:
        num_inf = count_inf(suspects)
    # All norms may be finite while the norm of the norms is too large.
    num_bad = max(seen.num_bad_params, int(not seen.norm_is_bounded))
    return replace(
        seen,
        grad_is_finite=not nonfinite_indices(suspects),
        num_bad_params=num_bad,
        num_inf_params=num_inf,
        weights_are_finite=not is_lost,
    )


def count_inf(grads: Sequence[Tensor]) -> int:
    """Return the number of gradients with an Inf on this rank.

    Reads from the device once.
    """
    flags = []
    for grad in grads:
        values = real_values(grad)
        if values is not None:
            flags.append(torch.isinf(values).any())
    return int(sum(read_once({'flags': flags})['flags']))


def nonfinite_indices(tensors: Sequence[Tensor]) -> List[int]:
    """Return the indices of tensors with NaN or Inf on this rank.

    Tensors whose elements cannot be read count as finite. Reads from the
    device once.
    """
    indices, are_finite = [], []
    for index, tensor in enumerate(tensors):
        values = real_values(tensor)
        if values is not None:
            indices.append(index)
            are_finite.append(torch.isfinite(values).all())
    flags = read_once({'are_finite': are_finite})['are_finite']
    return [index for index, flag in zip(indices, flags) if not flag]


def split_norms(
    norms: Sequence[float],
    norm_type: float,
    carried: float,
    placement: Placement,
) -> List[float]:
    """Return the unscaled norm of each place in ``placement``.

    The norm of all gradients that are not sharded comes first, then a norm
    for each group of ranks.
    """
    if not placement.groups:
        return [combine(norms, norm_type) / carried]
    # The place None stands for gradients that are not sharded.
    by_place: Dict[Optional[int], List[float]] = {None: []}
    for index in range(len(placement.groups)):
        by_place[index] = []
    for norm, place in zip(norms, placement.places):
        by_place[place].append(norm)
    return [combine(ns, norm_type) / carried for ns in by_place.values()]


def combine(norms: Sequence[float], norm_type: float) -> float:
    """Return the norm of norms in float64; NaN takes precedence over inf."""
    if any(map(math.isnan, norms)):
        return math.nan
    largest = max(norms, default=0.0)
    if norm_type == math.inf or not math.isfinite(largest):
        return largest
    if norm_type == 2.0:
        # In float64, the square of a float32 norm cannot overflow.
        return math.sqrt(math.fsum([norm * norm for norm in norms]))
    if largest == 0.0:
        return 0.0
    # Divided by the largest first: a high power would overflow float64.
    powers = math.fsum([(norm / largest) ** norm_type for norm in norms])
    return largest * math.pow(powers, 1 / norm_type)
