"""Facts about a batch for the report of a fault: sample names and ranges."""

import math
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple, Union

import torch
from torch import Tensor

from mmnanguard._support.parts import Trail, parts_of
from mmnanguard._support.sample_name import SampleKey, sample_name
from mmnanguard.core.checks import check_value
from mmnanguard.numerics.base.tensor_kinds import real_values, tensor_of

from .hook_arguments import DataBatch

__all__ = ['choose_sample_key', 'input_ranges', 'metainfo_names', 'sample_ids']

Range = Dict[str, Union[float, bool]]


def choose_sample_key(key: Optional[str]) -> None:
    """Name samples by a key of their metainfo from now on, if they have it.

    Raises:
        GuardConfigError: If the key is neither a text nor None.
    """
    check_value(
        key is None or isinstance(key, str),
        'NanGuardHook.sample_key',
        key,
        "a key of the metainfo, such as 'token', or None",
    )
    SampleKey.chosen = key


def sample_ids(data_batch: DataBatch, batch_idx: int) -> List[str]:
    """Return the samples' names, or the batch's index if none has a name."""
    return metainfo_names(data_batch) or [f'batch {batch_idx}']


def metainfo_names(data_batch: DataBatch) -> List[str]:
    """Return the names of the samples whose metainfo gives a name."""
    names = []
    for metainfo in _metainfos(data_batch):
        name = sample_name(metainfo)
        if name is not None:
            names.append(name)
    return names


def input_ranges(data_batch: DataBatch) -> Dict[str, Range]:
    """Return the range of all tensors of each field of a batch.

    A range has the smallest and the largest finite element, and whether all
    elements are finite. The batch is as the data loader made it. Syncs if it
    is on a device.
    """
    fields: Mapping[Any, object] = {'inputs': data_batch}
    if isinstance(data_batch, dict):
        fields = data_batch
    ranges = {}
    for key, value in fields.items():
        tensors = list(filter_numbers(value))
        if not tensors:
            continue
        low, high, is_finite = math.inf, -math.inf, True
        for tensor in tensors:
            finite, all_finite = _finite_range(tensor)
            low, high = min(low, finite[0]), max(high, finite[1])
            is_finite = is_finite and all_finite
        ranges[key] = {'min': low, 'max': high, 'is_finite': is_finite}
    return ranges


def _finite_range(tensor: Tensor) -> Tuple[Tuple[float, float], bool]:
    """Return the range of the finite elements, and whether all are finite."""
    finite = tensor[torch.isfinite(tensor)]
    if not finite.numel():
        # Neutral for the minimum and maximum over several tensors.
        return (math.inf, -math.inf), False
    extremes = finite.min().item(), finite.max().item()
    return extremes, finite.numel() == tensor.numel()


def _metainfos(
    value: object, trail: Trail = ()
) -> Iterator[Mapping[str, object]]:
    # Any class with metainfo, not only `BaseDataElement`: projects have data
    # samples of their own.
    metainfo = getattr(value, 'metainfo', None)
    if isinstance(metainfo, dict):
        yield metainfo
    elif isinstance(value, (dict, list, tuple)):
        for _, item in parts_of(value, trail):
            yield from _metainfos(item, (*trail, id(value)))


def filter_numbers(value: object, trail: Trail = ()) -> Iterator[Tensor]:
    """Yield the real numbers of all tensors and arrays in a value."""
    tensor = tensor_of(value)
    if tensor is not None:
        numbers = real_values(tensor)
        if numbers is not None:
            yield numbers
    for _, item in parts_of(value, trail):
        yield from filter_numbers(item, (*trail, id(value)))
