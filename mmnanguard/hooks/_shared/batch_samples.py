"""Which part of a batch belongs to which of its samples."""

import copy
from typing import (
    Any,
    Iterator,
    List,
    Mapping,
    MutableMapping,
    Optional,
    Sequence,
    Tuple,
)

import numpy as np
from mmengine.structures import BaseDataElement
from torch import Tensor

from .batch_facts import own_names, sample_ids
from .hook_arguments import DataBatch

__all__ = [
    'count_samples',
    'sample_names',
    'take_samples',
    'tensors_of_samples',
]


def sample_names(data_batch: DataBatch, batch_idx: int) -> List[str]:
    """A name for each sample; those that have none are told by their row."""
    size = count_samples(data_batch)
    if size > 1 and not own_names(data_batch):
        return [f'batch {batch_idx}, row {row}' for row in range(size)]
    return sample_ids(data_batch, batch_idx)


def count_samples(value: Any) -> int:
    """Of a batch; 0 if that is not clear."""
    if isinstance(value, Mapping):
        fields = list(value.values())
        return count_samples(value.get('inputs', fields[0] if fields else 0))
    if is_sequence(value) and value:
        is_fields = not look_alike(value) or all(map(is_batch, value))
        return count_samples(value[0]) if is_fields else len(value)
    return len(value) if isinstance(value, Tensor) and value.dim() else 0


def tensors_of_samples(
    value: Any, num_samples: int, sample: Optional[int] = None
) -> Iterator[Tuple[Tensor, Tuple[int, ...]]]:
    """Each tensor of a batch, and its samples: one for all of it, one for
    each row, or none if that is not clear.

    Args:
        value: The batch.
        num_samples: Of the batch.
        sample: To which all of ``value`` belongs.
    """
    if isinstance(value, Tensor):
        if sample is not None:
            yield value, (sample,)
        elif value.dim() > 0 and len(value) == num_samples:
            yield value, tuple(range(num_samples))
        else:
            yield value, ()
    elif isinstance(value, BaseDataElement):
        for item in vars(value).values():
            yield from tensors_of_samples(item, num_samples, sample)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of_samples(item, num_samples, sample)
    elif is_sequence(value):
        is_list = sample is None and is_per_sample(value, num_samples)
        for index, item in enumerate(value):
            owner = index if is_list else sample
            yield from tensors_of_samples(item, num_samples, owner)


def take_samples(value: Any, num_samples: int, rows: Sequence[int]) -> Any:
    """A batch of some of its samples; what belongs to none is kept.

    Args:
        value: The batch.
        num_samples: Of the batch.
        rows: Which ones, from 0.
    """
    if isinstance(value, (Tensor, np.ndarray)):
        is_batched = value.ndim > 0 and len(value) == num_samples
        return value[list(rows)] if is_batched else value
    if isinstance(value, MutableMapping):
        new = copy.copy(value)
        for key, item in value.items():
            new[key] = take_samples(item, num_samples, rows)
        return new
    if not is_sequence(value):
        return value
    if is_per_sample(value, num_samples):
        return type(value)(value[row] for row in rows)
    parts = [take_samples(item, num_samples, rows) for item in value]
    is_named = hasattr(value, '_fields')
    return type(value)(*parts) if is_named else type(value)(parts)


def is_sequence(value: object) -> bool:
    return isinstance(value, (list, tuple))


def is_per_sample(value: Sequence[Any], num_samples: int) -> bool:
    """Rather than as many fields, or views, as there are samples."""
    return (
        len(value) == num_samples
        and look_alike(value)
        and not all(map(is_batch, value))
    )


def look_alike(items: Sequence[Any]) -> bool:
    """As samples do: images and labels do not."""
    return all(kind_of(item) == kind_of(items[0]) for item in items)


def kind_of(item: Any) -> Any:
    if isinstance(item, (Tensor, np.ndarray)):
        return type(item), item.ndim
    if is_sequence(item) and item:
        return type(item), kind_of(item[0])
    return type(item)


def is_batch(value: object) -> bool:
    """Rather than one sample."""
    return isinstance(value, Tensor) and value.dim() >= 4
