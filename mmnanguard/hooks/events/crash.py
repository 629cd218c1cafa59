"""The bad numbers that an iteration met before an exception ended it.

Code that checks its numbers, as ``torch.distributions`` does, raises where the
guard would have named NaN or Inf, and its error names neither the input nor
the weight that they come from.
"""

from typing import Dict, Mapping, Sequence, Set, Tuple

import torch
from torch import Tensor, nn

from mmnanguard.numerics.base.tensor_kinds import real_values
from mmnanguard.numerics.update.blame import plain_name
from mmnanguard.numerics.update.observe import nonfinite_indices

from .._shared.batch_samples import sample_names, tensors_of_samples
from .._shared.hook_arguments import DataBatch

__all__ = ['bad_params', 'find_bad_inputs']

MAX_NAMES = 5


def bad_params(model: nn.Module) -> Tuple[str, ...]:
    """Return a few trained parameters that are not finite; syncs."""
    names, params = [], []
    for name, param in model.named_parameters():
        if param.requires_grad:
            names.append(plain_name(name))
            params.append(param.detach())
    bad = nonfinite_indices(params)[:MAX_NAMES]
    return tuple(map(names.__getitem__, bad))


def find_bad_inputs(
    data_batch: DataBatch, batch_idx: int
) -> Dict[str, Tuple[str, ...]]:
    """Return the fields of a batch that are not finite, with samples; syncs.

    Args:
        data_batch: The batch as the data loader made it.
        batch_idx: Its index, which names samples without a name.
    """
    names = sample_names(data_batch, batch_idx)
    fields: Mapping[object, object] = {'inputs': data_batch}
    if isinstance(data_batch, Mapping):
        fields = data_batch
    bad: Dict[str, Tuple[str, ...]] = {}
    for key, value in fields.items():
        bad_rows: Set[int] = set()
        is_bad = False
        for tensor, samples in tensors_of_samples(value, len(names)):
            values = real_values(tensor)
            if values is None or bool(torch.isfinite(values).all()):
                continue
            is_bad = True
            bad_rows.update(bad_among(values, samples))
        if is_bad:
            rows = sorted(bad_rows)[:MAX_NAMES]
            bad[str(key)] = tuple(map(names.__getitem__, rows))
    return bad


def bad_among(values: Tensor, samples: Sequence[int]) -> Sequence[int]:
    """Return the samples to which the bad elements of a tensor belong; syncs.

    Args:
        values: The elements, of which some are bad.
        samples: The only sample, the sample of each row, or none if that is
            not known.
    """
    if len(samples) < 2:
        return samples
    # The rows of sparse tensors are not known.
    if len(values) != len(samples):
        return ()
    is_fine = torch.isfinite(values).reshape(len(values), -1).all(1).tolist()
    return [row for row, fine in zip(samples, is_fine) if not fine]
