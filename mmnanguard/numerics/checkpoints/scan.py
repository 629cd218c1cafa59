import hashlib
import math
from dataclasses import dataclass, replace
from typing import (
    Any,
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
from .saved_averages import EMA_KEY, source_of, trained_and_averaged
from .saved_optimizer import (
    GUARD_KEY,
    optimizer_tensors,
    optimizers_of,
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

ABSURD = 1e18
FLOAT32_TINY = torch.finfo(torch.float32).tiny
Key = Tuple[str, str]


@dataclass(frozen=True)
class ScanFinding:
    """One tensor of a checkpoint that is not as it should be.

    Attributes:
        part: 'weight' (buffers too), 'optimizer', 'ema' or 'scale'.
        name: As in the model; that of an optimizer's state is the parameter
            and the key ('head.weight exp_avg'), or 'state 17 exp_avg' where
            the parameter is not certain.
        kind: 'nan' if any element is NaN, else 'inf', else 'absurd': finite
            but beyond the limit; of a loss scale also zero, negative or
            denormal.
        count: Number of elements that are not as they should be; NaN and Inf
            only, if there are any.
        numel: Number of elements.
        dtype: Such as 'float32'.
        min: Smallest finite element; None if none.
        max: Largest finite element; None if none.
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
    """What :func:`scan_checkpoint` saw.

    Attributes:
        findings: What is bad, in the order of the checkpoint.
        masks: What may be a mask by design, with a digest of its bits.
        keys: (part, name) of all tensors of the model and of its average.
    """

    findings: Tuple[ScanFinding, ...] = ()
    masks: Tuple[Tuple[ScanFinding, str], ...] = ()
    keys: FrozenSet[Key] = frozenset()


@torch.no_grad()
def scan_checkpoint(
    checkpoint: Mapping[str, Any], limit: float = ABSURD
) -> CheckpointScan:
    """Look at each tensor of an MMEngine checkpoint.

    With ``EMAHook``, MMEngine saves the averaged weights as ``state_dict``
    and the trained ones in ``ema_state_dict``. A finding's part says what a
    tensor is, not where it lies: 'ema' is an average, 'weight' is trained.

    A tensor whose only non-finite elements are Inf and whose other elements
    are integers or all the same may be a mask (attention's): it is returned
    apart, for :func:`classify_masks` to compare it with other checkpoints. A
    parameter that is known to be trained and statistics of BatchNorm are no
    masks, and neither is a tensor without a finite element.

    Args:
        checkpoint: As loaded; only read.
        limit: Above it, in absolute value, a weight or buffer is absurd.
            In an optimizer's state, which holds squares, it is squared.
    """
    weights, averages = tell_apart(checkpoint)
    states = list(optimizer_tensors(checkpoint.get('optimizer'), weights))
    trained = {param for param, _, _ in states if param}
    findings: List[ScanFinding] = []
    masks: List[Tuple[ScanFinding, str]] = []
    keys: List[Key] = []
    for part, tensors in (('weight', weights), ('ema', averages)):
        stats = running_stats(tensors)
        for name, value in tensors.items():
            keys.append((part, name))
            found = examine(part, name, value, limit)
            if found is None:
                continue
            if name not in trained | stats and is_like_mask(value, limit):
                masks.append((found, digest(value)))
            else:
                findings.append(found)
    for _, name, state in states:
        found = examine('optimizer', name, state, limit * limit)
        if found is not None:
            findings.append(found)
    findings.extend(scan_scales(checkpoint))
    return CheckpointScan(tuple(findings), tuple(masks), frozenset(keys))


def classify_masks(scans: Sequence[CheckpointScan]) -> List[CheckpointScan]:
    """Decide what is a mask: what is the same, bit for bit, wherever it is.

    Any other becomes a finding. A single checkpoint is compared with nothing:
    all of its candidates stay masks.
    """
    bits: Dict[Key, Set[Optional[str]]] = {}
    for scan in scans:
        own = {(mask.part, mask.name): value for mask, value in scan.masks}
        for key in scan.keys:
            bits.setdefault(key, set()).add(own.get(key))
    settled = []
    for scan in scans:
        changed = [
            mask
            for mask, _ in scan.masks
            if len(bits[mask.part, mask.name]) > 1
        ]
        settled.append(
            replace(
                scan,
                findings=(*changed, *scan.findings),
                masks=tuple(
                    each for each in scan.masks if each[0] not in changed
                ),
            )
        )
    return settled


def join_ranks(scans: Sequence[CheckpointScan]) -> CheckpointScan:
    """One scan of a checkpoint that each rank saved its part of."""
    findings: List[ScanFinding] = []
    masks: List[Tuple[ScanFinding, str]] = []
    keys: List[Key] = []
    for rank, scan in enumerate(scans):
        start = f'rank {rank}: '
        findings += [replace(f, name=start + f.name) for f in scan.findings]
        masks += [(replace(f, name=start + f.name), d) for f, d in scan.masks]
        keys += [(part, start + name) for part, name in scan.keys]
    return CheckpointScan(tuple(findings), tuple(masks), frozenset(keys))


def tell_apart(
    checkpoint: Mapping[str, Any],
) -> Tuple[Dict[str, Tensor], Dict[str, Tensor]]:
    """Return the trained tensors and the averaged ones, by name.

    An average has the name of its source.
    """
    weights, averaged = trained_and_averaged(
        dict(walk(checkpoint['state_dict'])),
        dict(walk(checkpoint.get(EMA_KEY) or {})),
    )
    averages = {}
    for name, value in averaged.items():
        source = source_of(name)
        averages[source if source in weights else name] = value
    return only_tensors(weights), only_tensors(averages)


def only_tensors(values: Mapping[str, Any]) -> Dict[str, Tensor]:
    return {k: v for k, v in values.items() if isinstance(v, Tensor)}


def examine(
    part: str, name: str, value: Union[Tensor, float], limit: float
) -> Optional[ScanFinding]:
    """What is wrong with a tensor; None if nothing is."""
    values = elements(value)
    if values is None:
        return None
    low, high = (bound.item() for bound in torch.aminmax(values))
    # Without a copy of the tensor, and NaN is never within the bounds.
    if max(-low, high) <= limit and math.isfinite(low + high):
        return None
    is_finite = torch.isfinite(values)
    finite = values[is_finite]
    count = values.numel() - finite.numel()
    kind = 'nan' if torch.isnan(values).any() else 'inf'
    if count == 0:
        count, kind = int((finite.abs() > limit).sum()), 'absurd'
        if count == 0:  # low and high are finite, but their sum is not
            return None
    dtype = value.dtype if isinstance(value, Tensor) else torch.float64
    return ScanFinding(
        part=part,
        name=name,
        kind=kind,
        count=count,
        numel=values.numel(),
        dtype=dtype_name(dtype),
        min=finite.min().item() if finite.numel() else None,
        max=finite.max().item() if finite.numel() else None,
    )


def elements(value: Union[Tensor, float]) -> Optional[Tensor]:
    """Real numbers that may be non-finite; None if there are none."""
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float64)
    values = local(value.detach())
    if values.is_sparse:
        values = values.coalesce().values()
    if values.is_complex():
        values = torch.view_as_real(values)
    if not values.is_floating_point() or values.numel() == 0:
        return None
    # Few operations know the types of 8 bits.
    return values.float() if values.element_size() == 1 else values


def is_like_mask(value: Tensor, limit: float) -> bool:
    values = elements(value)
    if values is None or value.is_sparse or torch.isnan(values).any():
        return False
    finite = values[torch.isfinite(values)]
    if finite.numel() in (0, values.numel()):
        return False
    largest = finite.abs().max().item()
    if (finite == finite[0]).all():
        return largest <= limit
    # Above it, each number of the type is an integer.
    is_exact = largest <= 1 / torch.finfo(finite.dtype).eps
    return is_exact and bool((finite == finite.round()).all())


def digest(value: Tensor) -> str:
    tensor = local(value.detach()).contiguous()
    bits = tensor.flatten().view(torch.uint8).numpy()
    head = f'{tensor.dtype} {tuple(tensor.shape)}'.encode()
    return hashlib.sha256(head + bits.tobytes()).hexdigest()


def scan_scales(checkpoint: Mapping[str, Any]) -> Iterator[ScanFinding]:
    """A loss scale must be a normal positive number of float32."""
    saved = checkpoint.get(GUARD_KEY) or {}
    owners = [*optimizers_of(checkpoint.get('optimizer')).items()]
    # Strategies that leave the scale out of the optimizer's state.
    owners += (saved.get('guards') or {}).items()
    for name, owner in owners:
        scale = (owner.get('loss_scaler') or {}).get('scale')
        if scale is None:
            continue
        scale = float(scale)
        is_finite = math.isfinite(scale)
        if is_finite and scale >= FLOAT32_TINY:
            continue
        kind = 'nan' if math.isnan(scale) else 'inf'
        yield ScanFinding(
            part='scale',
            name=f'{name}: loss_scaler.scale' if name else 'loss_scaler.scale',
            kind='absurd' if is_finite else kind,
            count=1,
            numel=1,
            dtype='float32',
            min=scale if is_finite else None,
            max=scale if is_finite else None,
        )
