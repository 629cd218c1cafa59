import math
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import torch
from torch import Tensor, nn

from mmnanguard.core import BadTensor, Cause

from .observe import Reading, nonfinite_indices

__all__ = ['MAX_BLAMED', 'TensorNames', 'blame']

MAX_BLAMED = 5
WRAPPERS = (
    'module',
    '_orig_mod',
    '_checkpoint_wrapped_module',
    '_fsdp_wrapped_module',
)


class TensorNames:
    """Names of parameters and buffers from the models that contexts saw.

    Args:
        models: In the order in which names are looked for.
        groups: The optimizer's parameter groups, for parameters that no
            model is known to have.
    """

    def __init__(
        self, models: Sequence[nn.Module], groups: Sequence[Mapping[str, Any]]
    ) -> None:
        self._params: Dict[int, List[str]] = {}
        self._owners: Dict[int, str] = {}
        for model in models:
            for name, param in model.named_parameters(remove_duplicate=False):
                names = self._params.setdefault(id(param), [])
                if _strip(name) not in names:
                    names.append(_strip(name))
            for name, owner in model.named_modules():
                self._owners.setdefault(id(owner), name)
        for index, group in enumerate(groups):
            for position, param in enumerate(group['params']):
                self._params.setdefault(
                    id(param),
                    [
                        f'group {index}, tensor {position}, shape '
                        f'{tuple(param.shape)}'
                    ],
                )

    def of_param(self, param: Tensor) -> str:
        """All names of a shared parameter, joined."""
        return ' = '.join(self._params[id(param)])

    def of_buffer(self, owner: nn.Module, key: str) -> str:
        return _strip(f'{self._owners.get(id(owner), "")}.{key}')


def blame(
    cause: Cause,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    weights: Sequence[Tensor],
    reading: Reading,
    scale: float,
    names: TensorNames,
) -> Tuple[BadTensor, ...]:
    """Name a few of the tensors that a rejection is about; syncs.

    Gradients come nearest to the loss first, which backward reaches first:
    the first one named is where it began. Must run before anything is put
    back or set to zero.

    Args:
        cause: Decides what kind of tensor is blamed.
        params: Owners of ``grads``.
        grads: Still scaled.
        weights: All parameters, trained or not.
        reading: What was read of ``grads``.
        scale: Of ``grads``.
        names: For the names.
    """
    if cause is Cause.BUFFER_NONFINITE:
        return tuple(
            describe(
                names.of_buffer(owner, key), 'buffer', owner.get_buffer(key)
            )
            for owner, key in reading.bad_buffers[:MAX_BLAMED]
        )
    if cause is Cause.WEIGHT_NONFINITE:
        return tuple(
            describe(names.of_param(weights[index]), 'weight', weights[index])
            for index in nonfinite_indices(weights)[:MAX_BLAMED]
        )
    bad = [
        index
        for index, norm in enumerate(reading.norms)
        if not math.isfinite(norm)
    ]
    if cause is Cause.NORM_OVERFLOW and grads and not bad:
        bad = [max(range(len(grads)), key=reading.norms.__getitem__)]
    return tuple(
        describe(
            names.of_param(params[index]), 'gradient', grads[index], scale
        )
        for index in bad[::-1][:MAX_BLAMED]
    )


@torch.no_grad()
def describe(
    name: str, tensor_kind: str, tensor: Tensor, scale: float = 1.0
) -> BadTensor:
    """Statistics of one tensor; syncs."""
    values = tensor.detach()
    finite = values[torch.isfinite(values)].float() / scale
    count = values.numel() - finite.numel()
    is_nan = bool(torch.isnan(values).any())
    return BadTensor(
        name=name,
        tensor=tensor_kind,
        kind='nan' if is_nan else 'inf' if count else 'huge',
        count=count,
        numel=values.numel(),
        min=finite.min().item() if finite.numel() else math.nan,
        max=finite.max().item() if finite.numel() else math.nan,
        dtype=str(values.dtype).replace('torch.', ''),
    )


def _strip(name: str) -> str:
    parts = [part for part in name.split('.') if part not in WRAPPERS]
    return '.'.join(filter(None, parts))
