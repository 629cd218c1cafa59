"""What a batch tells about itself when something went wrong with it."""

import math
from typing import Any, Dict, Iterator, List

import torch
from torch import Tensor

from mmnanguard._support.sample_name import sample_name

from .hook_arguments import DataBatch

__all__ = ['input_ranges', 'own_names', 'sample_ids']


def sample_ids(data_batch: DataBatch, batch_idx: int) -> List[str]:
    """Names of the samples, from their metainfo; else the batch's index."""
    return own_names(data_batch) or [f'batch {batch_idx}']


def own_names(data_batch: DataBatch) -> List[str]:
    """Of the samples that have some."""
    names = map(sample_name, _metainfos(data_batch))
    return [name for name in names if name is not None]


def input_ranges(data_batch: DataBatch) -> Dict[str, Dict[str, Any]]:
    """Smallest and largest finite element of each tensor or list of tensors,
    as the data loader gave them; syncs if they are on a device.
    """
    if not isinstance(data_batch, dict):
        data_batch = {'inputs': data_batch}
    ranges = {}
    for key, value in data_batch.items():
        tensors = [item for item in _tensors(value) if item.numel()]
        if not tensors:
            continue
        low, high, is_finite = math.inf, -math.inf, True
        for tensor in tensors:
            finite = tensor[torch.isfinite(tensor)]
            is_finite = is_finite and finite.numel() == tensor.numel()
            if finite.numel():
                low = min(low, finite.min().item())
                high = max(high, finite.max().item())
        ranges[key] = {'min': low, 'max': high, 'is_finite': is_finite}
    return ranges


def _metainfos(value: Any) -> Iterator[Dict[str, Any]]:
    if isinstance(getattr(value, 'metainfo', None), dict):
        yield value.metainfo
    elif isinstance(value, dict):
        for item in value.values():
            yield from _metainfos(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _metainfos(item)


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
