"""A scan of a loaded checkpoint for NaN, Inf and absurdly large numbers.

:func:`scan_checkpoint` checks a single checkpoint. Whether an Inf is a fault
or belongs to a mask shows only in a comparison with other checkpoints of the
run: :func:`classify_masks` compares them.
"""

import hashlib
import math
from dataclasses import dataclass, replace
from typing import (
    Dict,
    FrozenSet,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
    Union,
)

import torch
from torch import Tensor

from ..base.dtype_name import dtype_name
from ..base.shards import local
from ..base.tensor_kinds import real_values
from .saved_averages import EMA_KEY, source_of, trained_and_averaged
from .saved_optimizer import (
    GUARD_KEY,
    StateDict,
    optimizer_tensors,
    optimizers_of,
    owner_prefix,
    running_stats,
    walk,
)

__all__ = [
    'ABSURD',
    'CheckpointScan',
    'ScanFinding',
    'classify_masks',
    'join_ranks',
    'scan_checkpoint',
]

# Far beyond any trained weight, and so that its square, the limit for the
# second moments of an optimizer, is still finite in float32.
ABSURD = 1e18
FLOAT32_TINY = torch.finfo(torch.float32).tiny
# The part and the name of a tensor; an average has the name of its source.
Key = Tuple[str, str]


@dataclass(frozen=True)
class ScanFinding:
    """A tensor of a checkpoint with NaN, Inf or absurdly large elements.

    Attributes:
        part: 'weight' (also for buffers), 'optimizer', 'ema' or 'scale'.
        name: The tensor's name in the model. In an optimizer's state, the
            parameter and the key ('head.weight exp_avg'), or
            'state 17 exp_avg' if the parameter is not certain.
        kind: 'nan' if any element is NaN, else 'inf' if any is Inf, else
            'absurd': finite but beyond the limit. A loss scale that is zero,
            negative or denormal is 'absurd' as well.
        count: Number of NaN and Inf elements, or of absurd elements if there
            is no NaN and no Inf.
        numel: Number of elements.
        dtype: The name of the dtype, such as 'float32'.
        min: Smallest finite element; None without a finite element.
        max: Largest finite element; None without a finite element.
    """

    part: str
    name: str
    kind: str
    count: int
    numel: int
    dtype: str
    min: Optional[float]
    max: Optional[float]


@dataclass(frozen=True)
class CheckpointScan:
    """The result of :func:`scan_checkpoint`.

    Attributes:
        findings: The bad tensors, in the order of the checkpoint.
        masks: The tensors that may hold Inf by design, each with a digest of
            its bits.
        keys: (part, name) of all tensors of the model and of its average.
    """

    findings: Tuple[ScanFinding, ...] = ()
    masks: Tuple[Tuple[ScanFinding, str], ...] = ()
    keys: FrozenSet[Key] = frozenset()


@torch.no_grad()
def scan_checkpoint(
    checkpoint: StateDict, limit: float = ABSURD
) -> CheckpointScan:
    """Check each tensor of an MMEngine checkpoint.

    With ``EMAHook``, MMEngine saves the averaged weights as ``state_dict``
    and the trained weights in ``ema_state_dict``. The part of a finding does
    not depend on this exchange: 'ema' is an average, 'weight' is trained.

    A tensor may be a mask (such as attention's) if its only non-finite
    elements are Inf and its other elements are integers or all equal. Masks
    are returned separately, so that :func:`classify_masks` can compare them
    with other checkpoints. Trained parameters, statistics of BatchNorm and
    tensors without a finite element are never masks. Parameters of which a
    guard noted that they were non-finite before its first update are not
    judged.

    Args:
        checkpoint: The loaded checkpoint, which is only read.
        limit: The largest absolute value, inclusive, of a sound weight or
            buffer. In an optimizer's state, which holds squares, the limit
            is squared.
    """
    weights, averages = split_averages(checkpoint)
    states = list(optimizer_tensors(checkpoint.get('optimizer'), weights))
    # A tensor with an optimizer state is trained and hence no mask.
    trained = {param for param, _, _ in states}
    by_design = noted_by_guards(checkpoint.get('optimizer'))
    findings: List[ScanFinding] = []
    masks: List[Tuple[ScanFinding, str]] = []
    keys: List[Key] = []
    for part, tensors in (('weight', weights), ('ema', averages)):
        stats = running_stats(tensors)
        for name, value in tensors.items():
            keys.append((part, name))
            finding = examine(part, name, value, limit)
            if finding is None or name in by_design:
                continue
            if name not in trained | stats and is_like_mask(value, limit):
                masks.append((finding, digest(value)))
            else:
                findings.append(finding)
    for _, name, state in states:
        finding = examine('optimizer', name, state, limit * limit)
        if finding is not None:
            findings.append(finding)
    findings.extend(scan_scales(checkpoint))
    return CheckpointScan(tuple(findings), tuple(masks), frozenset(keys))


def classify_masks(scans: Sequence[CheckpointScan]) -> List[CheckpointScan]:
    """Decide which candidates are masks, by comparing checkpoints.

    A mask has the same bits in every checkpoint. Any other candidate becomes
    a finding. With a single checkpoint all candidates stay masks.
    """
    digests: Dict[Key, Set[Optional[str]]] = {}
    for scan in scans:
        known: Dict[Key, str] = {}
        for mask, value in scan.masks:
            known[mask.part, mask.name] = value
        # A tensor that is no candidate here has the digest None.
        # A checkpoint without the tensor is not counted.
        for key in scan.keys:
            digests.setdefault(key, set()).add(known.get(key))
    classified = []
    for scan in scans:
        changed, masks = [], []
        for mask, value in scan.masks:
            if len(digests[mask.part, mask.name]) > 1:
                changed.append(mask)
            else:
                masks.append((mask, value))
        findings = (*changed, *scan.findings)
        classified.append(replace(scan, findings=findings, masks=tuple(masks)))
    return classified


def join_ranks(scans: Sequence[CheckpointScan]) -> CheckpointScan:
    """Join the scans of a checkpoint of which each rank saved a part."""
    findings: List[ScanFinding] = []
    masks: List[Tuple[ScanFinding, str]] = []
    keys: List[Key] = []
    for rank, scan in enumerate(scans):
        # Every rank has a part of the same name.
        start = f'rank {rank}: '
        for finding in scan.findings:
            findings.append(replace(finding, name=start + finding.name))
        for mask, value in scan.masks:
            masks.append((replace(mask, name=start + mask.name), value))
        for part, name in scan.keys:
            keys.append((part, start + name))
    return CheckpointScan(tuple(findings), tuple(masks), frozenset(keys))


def split_averages(
    checkpoint: StateDict,
) -> Tuple[Dict[str, Tensor], Dict[str, Tensor]]:
    """Return the trained tensors and the averaged tensors, each by name.

    An average has the name of its source.
    """
    weights, averaged = trained_and_averaged(
        dict(walk(checkpoint['state_dict'])),
        dict(walk(checkpoint.get(EMA_KEY) or {})),
    )
    averages = {}
    for name, value in averaged.items():
        source = source_of(name)
        if source is None or source not in weights:
            source = name
        averages[source] = value
    return only_tensors(weights), only_tensors(averages)


def noted_by_guards(optimizer: object) -> Set[str]:
    """Return the parameters that guards noted as non-finite by design.

    Args:
        optimizer: The saved state of a wrapper, or of several by name.
    """
    names: Set[str] = set()
    if isinstance(optimizer, Mapping):
        for saved in (optimizer, *optimizer.values()):
            guard = saved.get('guard') if isinstance(saved, Mapping) else None
            if isinstance(guard, Mapping):
                names.update(guard.get('nonfinite_by_design', ()))
    return names


def only_tensors(values: Mapping[str, object]) -> Dict[str, Tensor]:
    """Return the entries that are tensors."""
    return {k: v for k, v in values.items() if isinstance(v, Tensor)}


def examine(
    part: str, name: str, value: Union[Tensor, float], limit: float
) -> Optional[ScanFinding]:
    """Return the finding on a tensor, or None for a sound tensor."""
    values = elements(value)
    if values is None:
        return None
    low, high = map(Tensor.item, torch.aminmax(values))
    # aminmax makes no copy of the tensor. It propagates NaN, for which the
    # comparison is False.
    if max(-low, high) <= limit and math.isfinite(low + high):
        return None
    finite = values[torch.isfinite(values)]
    count = values.numel() - finite.numel()
    kind = 'nan' if torch.isnan(values).any() else 'inf'
    if count == 0:
        count, kind = int((finite.abs() > limit).sum()), 'absurd'
        if count == 0:  # low and high are finite, but their sum is not
            return None
    # The dtype in the file: `values` may have been converted.
    dtype = torch.float64
    if isinstance(value, Tensor):
        dtype = value.dtype
    smallest = largest = None
    if finite.numel():
        smallest, largest = finite.min().item(), finite.max().item()
    return ScanFinding(
        part=part,
        name=name,
        kind=kind,
        count=count,
        numel=values.numel(),
        dtype=dtype_name(dtype),
        min=smallest,
        max=largest,
    )


def elements(value: Union[Tensor, float]) -> Optional[Tensor]:
    """Return a value's elements as real numbers that can be non-finite.

    Returns:
        A tensor of a floating type, or None if there are no elements of
        such a type. The elements of a sharded tensor are this rank's part.
    """
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float64)
    # Elements that are not stored are zeros.
    if value.layout is torch.sparse_coo:
        value = value.detach().coalesce()
    return real_values(value)


def is_like_mask(value: Tensor, limit: float) -> bool:
    """Whether a tensor may hold Inf by design; see :func:`scan_checkpoint`."""
    values = elements(value)
    if values is None or value.layout is not torch.strided:
        return False
    if torch.isnan(values).any():
        return False
    finite = values[torch.isfinite(values)]
    # Without a finite element it may be a weight that has diverged; without
    # Inf it is an ordinary tensor.
    if finite.numel() in (0, values.numel()):
        return False
    largest = finite.abs().max().item()
    # One finite value, such as 0 beside -inf in a mask of attention.
    if (finite == finite[0]).all():
        return largest <= limit
    # Above 1 / eps each number of the type is an integer.
    is_exact = largest <= 1 / torch.finfo(finite.dtype).eps
    return is_exact and bool((finite == finite.round()).all())


def digest(value: Tensor) -> str:
    """Return a hash of a tensor's dtype, shape and bits."""
    tensor = local(value.detach()).cpu().resolve_conj().resolve_neg()
    # As bytes, because numpy has no bfloat16.
    bits = tensor.contiguous().flatten().view(torch.uint8).numpy()
    head = f'{tensor.dtype} {tuple(tensor.shape)}'.encode()
    return hashlib.sha256(head + bits.tobytes()).hexdigest()


def scan_scales(checkpoint: StateDict) -> Iterator[ScanFinding]:
    """Yield a finding for each loss scale that cannot work.

    A loss scale must be a positive normal number of float32.
    """
    saved = checkpoint.get(GUARD_KEY) or {}
    owners = [*optimizers_of(checkpoint.get('optimizer')).items()]
    # Some strategies leave the scale out of the optimizer's state.
    owners += (saved.get('guards') or {}).items()
    for name, owner in owners:
        scale = (owner.get('loss_scaler') or {}).get('scale')
        if scale is None:
            continue
        finding = examine_scale(float(scale))
        if finding is None:
            continue
        yield replace(finding, name=owner_prefix(name) + finding.name)


def examine_scale(scale: float) -> Optional[ScanFinding]:
    """Return the finding on a loss scale, or None for a sound scale."""
    kind = 'absurd'
    finite: Optional[float] = None
    if math.isnan(scale):
        kind = 'nan'
    elif math.isinf(scale):
        kind = 'inf'
    elif scale < FLOAT32_TINY:
        finite = scale
    else:
        return None
    return ScanFinding(
        part='scale',
        name='loss_scaler.scale',
        kind=kind,
        count=1,
        numel=1,
        dtype='float32',
        min=finite,
        max=finite,
    )
