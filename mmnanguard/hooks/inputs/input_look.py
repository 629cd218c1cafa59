import copy
import math
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from .._shared.batch_facts import own_names
from .._shared.batch_samples import count_samples
from .input_policy import InputPolicy

__all__ = ['InputFlags', 'InputLook', 'bad_samples']

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class InputFlags(NamedTuple):
    """What one look saw.

    Attributes:
        parts: Keys, and names for the flags of each: of its rows, of the
            sample that it belongs to, or of the batch where that is unclear.
        is_bad: Shape (number of names), bool, True is bad; on the device.
    """

    parts: Sequence[Tuple[str, Tuple[str, ...]]]
    is_bad: Tensor


class InputLook:
    """One look at what a data preprocessor has put out; no sync.

    Looks at tensors of float16, bfloat16, float32 and float64 and at Python
    floats, in dicts, lists, tuples and data fields of data elements (not
    their metainfo). The key of a part is its path, without the positions in
    lists: 'inputs', 'data_samples.gt_instances.bboxes'. Arguments by
    position are '0', '1' and so on, a lone tensor is 'inputs'.

    A part belongs to a sample if it stands in a list with an item a sample.
    Else the rows of a tensor are samples if there are as many. There are as
    many samples as ``batch`` names; of one without names, as in 'inputs'.

    Args:
        output: What the preprocessor has put out; never changed.
        batch: What was put in, which names the samples.
        batch_idx: MMEngine's; from 0.
        policy: Which parts to look at, and what becomes of them.
        rank: ParsedRow where samples have no names; None with one rank.

    Attributes:
        output: With changed parts in copies of their containers.
        keys: All keys that could be looked at.
        flags: None if nothing was looked at.
    """

    def __init__(
        self,
        output: object,
        batch: object,
        batch_idx: int,
        policy: InputPolicy,
        rank: Optional[int] = None,
    ) -> None:
        self._batch_idx = batch_idx
        of_rank = '' if rank is None else f' of rank {rank}'
        self._batch_name = f'batch {batch_idx}{of_rank}'
        self._source = batch
        if isinstance(batch, dict) and 'data_samples' in batch:
            self._source = batch['data_samples']
        self._given = output
        self._names: Dict[int, Tuple[str, ...]] = {}
        self._policy = policy
        self._parts: List[Tuple[str, Tuple[str, ...]]] = []
        self._flags: List[Tensor] = []
        self.keys: Set[str] = set()
        self.output = self._walk(output, '')
        self.flags: Optional[InputFlags] = None
        if self._flags:
            self.flags = InputFlags(self._parts, join_flags(self._flags))

    def _walk(
        self, value: object, key: str, owner: Optional[str] = None
    ) -> Any:
        """The part, with what is below it, of the sample ``owner``."""
        if isinstance(value, (Tensor, float)):
            return self._check(value, key or 'inputs', owner)
        if isinstance(value, (dict, BaseDataElement)):
            items = list(value.items())
            if isinstance(value, BaseDataElement):
                # Its order is a set's, another one in each process.
                items.sort(key=lambda item: item[0])
            changes = {}
            for name, item in items:
                new = self._walk(item, join(key, name), owner)
                if new is not item:
                    changes[name] = new
            return with_items(value, changes)
        if isinstance(value, (list, tuple)):
            new = self._walk_list(value, key, owner)
            is_same = all(one is other for one, other in zip(new, value))
            return value if is_same else with_parts(value, new)
        return value

    def _walk_list(
        self, value: Sequence[Any], key: str, owner: Optional[str]
    ) -> List[Any]:
        names: Any = getattr(value, '_fields', None)
        if names is None and not key:
            names = range(len(value))  # arguments of the model's forward
        if names is not None:
            return [
                self._walk(item, join(key, name), owner)
                for name, item in zip(names, value)
            ]
        owners: Sequence[Optional[str]] = [owner] * len(value)
        if owner is None and self._has_item_a_sample(value, key):
            owners = self._names_for(key)
        return [self._walk(item, key, one) for item, one in zip(value, owners)]

    def _has_item_a_sample(self, value: Sequence[Any], key: str) -> bool:
        num_samples = len(self._names_for(key))
        are_views = all(
            isinstance(item, Tensor)
            and item.dim() >= 4
            and len(item) == num_samples
            for item in value
        )
        return len(value) == num_samples and not are_views

    def _check(self, value: Any, key: str, owner: Optional[str]) -> Any:
        """Flag a tensor or a float, and mend it."""
        is_tensor = isinstance(value, Tensor)
        if is_tensor and not (
            value.dtype in FLOATS and value.layout is torch.strided
        ):
            return value
        self.keys.add(key)
        if not self._policy.heeds(key):
            return value
        if not is_tensor and math.isfinite(value):
            return value
        rows = tensor = torch.as_tensor(
            value, dtype=None if is_tensor else torch.float64
        )
        names = self._names_for(key)
        if owner is not None:
            names, rows = (owner,), tensor[None]
        elif tensor.dim() == 0 or len(tensor) != len(names):
            names, rows = (self._batch_name,), tensor[None]
        self._parts.append((key, names))
        self._flags.append(bad_rows(rows.detach()))
        if not self._policy.mends:
            return value
        mended = self._policy.mend(tensor)
        return mended if is_tensor else mended.item()

    def _names_for(self, key: str) -> Tuple[str, ...]:
        """One a sample, of the branch (as in semi-supervised training) that
        the key leads to; none if it is unclear how many there are.
        """
        source = self._source
        for name in key.split('.')[1:]:
            if isinstance(source, dict) and name in source:
                source = source[name]
        if id(source) not in self._names:
            names = own_names(source) or [
                f'{self._batch_name}, row {row}'
                for row in range(count_samples(self._given))
            ]
            self._names[id(source)] = tuple(names)
        return self._names[id(source)]


def bad_samples(looks: Sequence[InputFlags]) -> Dict[str, List[str]]:
    """Names of what is bad, by key, each once; syncs."""
    if not looks:
        return {}
    is_bad = iter(join_flags([look.is_bad for look in looks]).tolist())
    found: Dict[str, Dict[str, None]] = {}  # of ordered sets
    for look in looks:
        for key, names in look.parts:
            for name in names:
                if next(is_bad):
                    found.setdefault(key, {})[name] = None
    return {key: list(names) for key, names in found.items()}


def join(key: str, name: object) -> str:
    return f'{key}.{name}' if key else str(name)


def bad_rows(rows: Tensor) -> Tensor:
    """Flags of shape (len(rows),), True where a row is not finite."""
    if rows.numel() == 0:
        return rows.new_zeros(len(rows), dtype=torch.bool)
    dims = tuple(range(1, rows.dim()))
    if not dims:
        return ~torch.isfinite(rows)
    # Both keep NaN. Much faster than a mask as large as the rows.
    low, high = rows.amin(dims), rows.amax(dims)
    return ~(torch.isfinite(low) & torch.isfinite(high))


def join_flags(flags: Sequence[Tensor]) -> Tensor:
    """On the accelerator if any is there: a copy to the host would sync."""
    device = next(
        (one.device for one in flags if one.device.type != 'cpu'),
        flags[0].device,
    )
    return torch.cat([one.to(device, non_blocking=True) for one in flags])


def with_items(value: Any, changes: Dict[str, Any]) -> Any:
    """A copy of a dict or a data element, but for some items."""
    if not changes:
        return value
    new = copy.copy(value)
    if isinstance(new, BaseDataElement):
        new.set_data(changes)
    else:
        new.update(changes)
    return new


def with_parts(value: Any, parts: List[Any]) -> Any:
    """A list or tuple of the same type, of other parts."""
    if hasattr(value, '_fields'):
        return type(value)(*parts)
    if isinstance(value, tuple):
        return type(value)(parts)
    new = copy.copy(value)
    new[:] = parts
    return new
