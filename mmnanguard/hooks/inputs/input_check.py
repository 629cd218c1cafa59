"""The check of a batch for non-finite numbers, without a sync.

``InputGuardHook`` makes an ``InputCheck`` of each micro-batch. The flags of a
check stay on the device. Only if an update is rejected for its input, or to
report what 'sanitize' replaced, does ``bad_samples`` copy the flags to the
host and turn them into names of samples.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from operator import attrgetter
from typing import (
    Collection,
    Dict,
    Iterable,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
    Union,
)

import numpy as np
import torch
from torch import Tensor

from mmnanguard._support.parts import Trail, parts_of, with_parts
from mmnanguard.numerics.base.host_read import COPIES_LATE
from mmnanguard.numerics.base.tensor_kinds import (
    is_ordinary,
    real_values,
    tensor_of,
)

from .._shared.batch_facts import metainfo_names
from .._shared.batch_samples import count_samples, is_batch
from .input_policy import InputPolicy

__all__ = ['InputCheck', 'InputFlags', 'bad_keys', 'bad_samples']

# The types that are checked and sanitized as they are.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class InputFlags(NamedTuple):
    """The result of a check.

    Attributes:
        parts: Key of each checked part, and a name for each of its flags.
            Flags belong to the rows of the part, or to the sample that has
            the part, or to the batch where the sample is unclear.
        is_bad: Flags of all parts, a bool tensor on the device; True is bad.
    """

    parts: Sequence[Tuple[str, Tuple[str, ...]]]
    is_bad: Tensor


class InputCheck:
    """The check of the output of a data preprocessor; no sync.

    Checks tensors and NumPy's arrays of float16, bfloat16, float32 and
    float64 and single floats, in dicts, lists, tuples, data fields of data
    elements (not their metainfo) and attributes of other objects, such as
    mmdet's boxes and masks. The key of a part is its path, without the
    positions in lists: 'inputs', 'data_samples.gt_instances.bboxes'.
    Arguments by position are '0', '1' and so on; an output that is a single
    tensor is 'inputs'.

    A part belongs to a sample if it is in a list that has one item for each
    sample. Otherwise the rows of a tensor belong to the samples if there are
    as many rows as samples. The number of samples is the number of names in
    ``batch``; for a batch without names, the number of 'inputs'.

    Args:
        output: Output of the preprocessor; never changed.
        batch: Input of the preprocessor, which names the samples.
        batch_idx: Index of the batch as in MMEngine, from 0.
        policy: Parts to check, and the replacement of bad numbers.
        masked: Keys that the model masks, which ``fact`` leaves out.
        rank: Rank, to name samples that have no name; None with a single
            rank.

    Attributes:
        output: The output, sanitized if the policy says so. Containers of
            changed parts are copies.
        keys: Keys of all parts that can be checked.
        flags: Flags of the checked parts; None if there is no such part.
        fact: Whether any checked part is not finite that is not masked, a
            0-dim tensor on the device; None if there is no such part.
    """

    def __init__(
        self,
        output: object,
        batch: object,
        batch_idx: int,
        policy: InputPolicy,
        rank: Optional[int] = None,
        masked: Collection[str] = (),
    ) -> None:
        self._batch_name = f'batch {batch_idx}'
        # All ranks have a batch with this index.
        if rank is not None:
            self._batch_name += f' of rank {rank}'
        self._source = batch
        if isinstance(batch, dict) and 'data_samples' in batch:
            self._source = batch['data_samples']
        self._given = output
        self._names: Dict[int, Tuple[str, ...]] = {}
        self._policy = policy
        self._parts: List[Tuple[str, Tuple[str, ...]]] = []
        self._flags: List[Tensor] = []
        self.keys: Set[str] = set()
        self.output = self._visit(output, '')
        self.flags: Optional[InputFlags] = None
        self.fact: Optional[Tensor] = None
        if not self._flags:
            return
        self.flags = InputFlags(self._parts, join_flags(self._flags))
        if not masked:
            self.fact = self.flags.is_bad.any()
            return
        judged = []
        for (key, _), flags in zip(self._parts, self._flags):
            if key not in masked:
                judged.append(flags)
        if judged:
            self.fact = join_flags(judged).any()

    def _visit(
        self,
        value: object,
        key: str,
        owner: Optional[str] = None,
        trail: Trail = (),
    ) -> object:
        """Check a part and all parts below it; return it, sanitized.

        Args:
            value: The part.
            key: Key of the part; '' for the whole output.
            owner: Name of the sample that has the part; None if the part
                belongs to several samples.
            trail: The ids of the values around it.
        """
        plain: Union[Tensor, float, None] = tensor_of(value)
        if isinstance(value, (float, np.floating)):
            plain = float(value)
        if plain is not None:
            checked = self._check(plain, key or 'inputs', owner)
            if checked is plain:
                return value
            is_array = isinstance(value, np.ndarray)
            return np.asarray(checked) if is_array else checked
        parts = parts_of(value, trail)
        is_list = isinstance(value, (list, tuple)) and not hasattr(
            value, '_fields'
        )
        owners: Iterable[Optional[str]] = repeat(owner)
        if is_list and key and owner is None:
            items = [item for _, item in parts]
            if self._is_per_sample(items, key):
                owners = self._names_for(key)
        changes = {}
        for (name, item), item_owner in zip(parts, owners):
            # The items of a list share its key, but for the list of the
            # arguments of the model's forward.
            item_key = key if is_list and key else join(key, name)
            new_item = self._visit(
                item, item_key, item_owner, (*trail, id(value))
            )
            # Compare identities: `==` of tensors compares their elements.
            if new_item is not item:
                changes[name] = new_item
        return with_parts(value, changes)

    def _is_per_sample(self, value: Sequence[object], key: str) -> bool:
        """Whether a list has one item for each sample."""
        num_samples = len(self._names_for(key))
        # Two views of two samples are a list of two batches.
        are_views = all(map(partial(is_view, num_samples), value))
        return len(value) == num_samples and not are_views

    def _check(
        self, value: Union[Tensor, float], key: str, owner: Optional[str]
    ) -> Union[Tensor, float]:
        """Flag a tensor or float; return it, sanitized."""
        tensor: Optional[Tensor] = None
        can_sanitize = True
        if isinstance(value, Tensor):
            tensor = value
            if value.dtype not in FLOATS or not is_ordinary(value):
                # Numbers in another form: complex, sparse, of 8 bits.
                tensor, can_sanitize = real_values(value), False
            if tensor is None or (self._policy.sanitizes and not can_sanitize):
                return value
        self.keys.add(key)
        if not self._policy.includes(key):
            return value
        if tensor is not None:
            pass
        elif math.isfinite(value):
            # No tensor for each finite float: a batch may have hundreds.
            return value
        else:
            tensor = torch.tensor(value, dtype=torch.float64)
        names, rows = self._names_for(key), tensor
        is_sparse = isinstance(value, Tensor) and value.layout != torch.strided
        if owner is not None:
            names, rows = (owner,), tensor[None]
        elif is_sparse or tensor.dim() == 0 or len(tensor) != len(names):
            names, rows = (self._batch_name,), tensor[None]
        self._parts.append((key, names))
        self._flags.append(bad_rows(rows.detach()))
        if not self._policy.sanitizes:
            return value
        sanitized = self._policy.sanitize(tensor)
        return sanitized if isinstance(value, Tensor) else sanitized.item()

    def _names_for(self, key: str) -> Tuple[str, ...]:
        """Return the names of the samples to which a part may belong.

        The result is empty if it is unclear how many samples there are.
        """
        # In semi-supervised training 'data_samples' is a dict of branches,
        # each with samples of its own.
        source = self._source
        for name in key.split('.')[1:]:
            if isinstance(source, dict) and name in source:
                source = source[name]
        # Kept, because many parts of a batch share a source.
        if id(source) not in self._names:
            names = metainfo_names(source) or [
                f'{self._batch_name}, row {row}'
                for row in range(count_samples(self._given))
            ]
            self._names[id(source)] = tuple(names)
        return self._names[id(source)]


@dataclass
class CheckedWindow:
    """The checks of the open window of a guard.

    Attributes:
        checks: Result of the check of each micro-batch.
        facts: Flag of each check that the guard has received, in the same
            order.
    """

    checks: List[InputFlags] = field(default_factory=list)
    facts: List[Tensor] = field(default_factory=list)


def bad_samples(checks: Sequence[InputFlags]) -> Dict[str, List[str]]:
    """Return the names of bad samples by key, each name once; syncs."""
    if not checks:
        return {}
    # All flags in one copy to the host: each copy is a sync.
    flags = join_flags(list(map(attrgetter('is_bad'), checks)))
    is_bad = iter(flags.tolist())
    # The inner dicts are ordered sets.
    bad: Dict[str, Dict[str, None]] = {}
    for check in checks:
        for key, names in check.parts:
            for name in names:
                if next(is_bad):
                    bad.setdefault(key, {})[name] = None
    return {key: list(names) for key, names in bad.items()}


def bad_keys(checks: Sequence[InputFlags]) -> Set[str]:
    """Return the keys that were not finite in any of the checks; syncs."""
    return set(bad_samples(checks))


def is_view(num_samples: int, value: object) -> bool:
    """Whether a value is a batch of images with all samples."""
    return (
        isinstance(value, Tensor)
        and is_batch(value)
        and len(value) == num_samples
    )


def join(key: str, name: object) -> str:
    """Return the key of the part ``name`` of the part ``key``."""
    return f'{key}.{name}' if key else str(name)


def bad_rows(rows: Tensor) -> Tensor:
    """Return flags of shape (len(rows),), True where a row is not finite."""
    if rows.numel() == 0:
        return rows.new_zeros(len(rows), dtype=torch.bool)
    dims = tuple(range(1, rows.dim()))
    if not dims:
        return ~torch.isfinite(rows)
    # `amin` and `amax` return NaN if a row has NaN, and are much faster than
    # a mask of all elements.
    low, high = rows.amin(dims), rows.amax(dims)
    return ~(torch.isfinite(low) & torch.isfinite(high))


def join_flags(flags: Sequence[Tensor]) -> Tensor:
    """Concatenate flags, on the accelerator if any flag is on it."""
    device = flags[0].device
    for flag in flags:
        # A copy to CUDA does not sync, a copy to the host does.
        if flag.device.type != 'cpu':
            device = flag.device
            break
    is_late = device.type in COPIES_LATE
    return torch.cat([flag.to(device, non_blocking=is_late) for flag in flags])
