"""The samples of a batch: their number, names, tensors and selection.

MMEngine's collate functions make dicts of stacked tensors, dicts of lists
with one item for each sample, or lists with one item for each field. Nothing
in a batch says which of these it is, so the functions infer it from shapes
and types, and answer "not clear" rather than blame the wrong sample.
"""

import copy
from typing import (
    Callable,
    Iterator,
    List,
    Mapping,
    MutableMapping,
    Optional,
    Sequence,
    Tuple,
)

import numpy as np
from torch import Tensor

from mmnanguard._support.parts import Trail, parts_of
from mmnanguard.numerics.base.tensor_kinds import tensor_of

from .batch_facts import metainfo_names, sample_ids
from .hook_arguments import DataBatch

__all__ = [
    'count_samples',
    'sample_names',
    'take_samples',
    'tensors_of_samples',
]

# A string is no sequence of samples.
SEQUENCES = (list, tuple)


def sample_names(data_batch: DataBatch, batch_idx: int) -> List[str]:
    """Return a name for each sample, or its row if no sample has a name."""
    size = count_samples(data_batch)
    if size > 1 and not metainfo_names(data_batch):
        return [f'batch {batch_idx}, row {row}' for row in range(size)]
    return sample_ids(data_batch, batch_idx)


def count_samples(value: DataBatch) -> int:
    """Return the number of samples of a batch; 0 if it is not clear."""
    if isinstance(value, Mapping):
        # MMEngine's data preprocessors read the field 'inputs'.
        first_field = next(iter(value.values()), None)
        return count_samples(value.get('inputs', first_field))
    if isinstance(value, SEQUENCES) and value:
        return len(value) if are_samples(value) else count_samples(value[0])
    if isinstance(value, Tensor) and value.dim():
        return len(value)
    return 0


def tensors_of_samples(
    value: DataBatch,
    num_samples: int,
    owner: Optional[int] = None,
    trail: Trail = (),
) -> Iterator[Tuple[Tensor, Tuple[int, ...]]]:
    """Yield each tensor or array of a batch, and the samples that have it.

    A tensor belongs to one sample as a whole, or each of its rows belongs to
    a sample. Without samples, it is not clear to which the tensor belongs.

    Args:
        value: The batch, or a part of it.
        num_samples: Number of samples of the batch.
        owner: Sample to which all of ``value`` belongs; None if it is not
            yet known.
        trail: The ids of the values around ``value``.
    """
    tensor = tensor_of(value)
    if tensor is not None:
        if owner is not None:
            yield tensor, (owner,)
        elif tensor.dim() > 0 and len(tensor) == num_samples:
            yield tensor, tuple(range(num_samples))
        else:
            yield tensor, ()
        return
    parts = parts_of(value, trail)
    is_list = (
        owner is None
        and isinstance(value, SEQUENCES)
        and is_per_sample(value, num_samples)
    )
    for index, (_, item) in enumerate(parts):
        yield from tensors_of_samples(
            item, num_samples, index if is_list else owner, (*trail, id(value))
        )


def take_samples(
    value: DataBatch, num_samples: int, rows: Sequence[int]
) -> DataBatch:
    """Return a batch of some samples; other parts are kept whole.

    Args:
        value: The batch, or a part of it; never changed.
        num_samples: Number of samples of the batch.
        rows: Samples to take, from 0.
    """
    if isinstance(value, (Tensor, np.ndarray)):
        if value.ndim > 0 and len(value) == num_samples:
            return value[list(rows)]
        return value
    if isinstance(value, MutableMapping):
        # A copy keeps the class of the mapping, and its other attributes.
        new = copy.copy(value)
        for key, item in value.items():
            new[key] = take_samples(item, num_samples, rows)
        return new
    if not isinstance(value, SEQUENCES):
        return value
    if is_per_sample(value, num_samples):
        return type(value)(value[row] for row in rows)
    parts = [take_samples(item, num_samples, rows) for item in value]
    if hasattr(value, '_fields'):
        # A named tuple takes its fields as separate arguments.
        make: Callable[..., object] = type(value)
        return make(*parts)
    return type(value)(parts)


def is_per_sample(value: Sequence[object], num_samples: int) -> bool:
    """Whether a sequence has one item for each sample of the batch."""
    return len(value) == num_samples and are_samples(value)


def are_samples(items: Sequence[object]) -> bool:
    """Whether items are samples, rather than fields or views of a batch."""
    # Fields differ in kind, as images and labels do. Views are alike, but
    # each of them is a whole batch.
    are_alike = len(set(map(kind_of, items))) == 1
    return are_alike and not all(map(is_batch, items))


def kind_of(item: object) -> object:
    """Return the type and dimensions by which samples are alike."""
    if isinstance(item, (Tensor, np.ndarray)):
        # Not the whole shape: images may differ in size.
        return type(item), item.ndim
    if isinstance(item, SEQUENCES) and item:
        return type(item), kind_of(item[0])
    return type(item)


def is_batch(value: object) -> bool:
    """Whether a value is a batch of images, rather than a single image."""
    # An image has three dimensions: channels, height, width.
    return isinstance(value, Tensor) and value.dim() >= 4
