import math
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import torch
from torch import Tensor, nn

from mmnanguard.core import BadTensor, Cause
from mmnanguard.core.causes import CAUSES

from ..base.dtype_name import dtype_name
from ..base.shards import local
from .observe import Reading, nonfinite_indices

__all__ = ['MAX_BLAMED', 'TensorNames', 'blame', 'plain_name']

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
                if plain_name(name) not in names:
                    names.append(plain_name(name))
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

    def split(self, param: Any, values: Tensor) -> List[Tuple[str, Tensor]]:
        """Names, with what of ``values`` each stands for: one but for a flat
        parameter of FSDP1, which holds several, or parts of them.
        """
        name, values = self.of_param(param), local(values)
        try:
            parts = zip(param._fqns, param._shard_param_infos)
        except AttributeError:
            return [(name, values)]
        prefix = name[: -len(name.split('.')[-1])]
        return [
            (
                prefix + part,
                values.narrow(0, where.offset_in_shard, where.numel_in_shard),
            )
            for part, where in list(parts)[::-1]
            if where.in_shard
        ]

    def of_buffer(self, owner: nn.Module, key: str) -> str:
        return plain_name(f'{self._owners.get(id(owner), "")}.{key}')


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
    kind = CAUSES[cause].blames
    is_weight = kind == 'weight'
    if kind == 'buffer' or (is_weight and reading.lost_buffers):
        return tuple(
            describe(
                names.of_buffer(owner, key), 'buffer', getattr(owner, key)
            )
            for owner, key in (
                reading.lost_buffers if is_weight else reading.bad_buffers
            )[:MAX_BLAMED]
        )
    if is_weight:
        bad = nonfinite_indices(weights)[:MAX_BLAMED]
        parts = [
            (name, 'weight', part, 1.0)
            for index in bad
            for name, part in names.split(weights[index], weights[index])
        ]
    else:
        bad = [
            index
            for index, norm in enumerate(reading.norms)
            if not math.isfinite(norm)
        ]
        if kind == 'largest gradient' and grads and not bad:
            bad = [max(range(len(grads)), key=reading.norms.__getitem__)]
        parts = [
            (name, 'gradient', part, scale)
            for index in bad[::-1][:MAX_BLAMED]
            for name, part in names.split(params[index], grads[index])
        ]
    found = [describe(*part) for part in parts]
    if any(tensor.count for tensor in found):
        # Of a flat parameter's parts, those that are bad.
        found = [tensor for tensor in found if tensor.count]
    return tuple(found[:MAX_BLAMED])


@torch.no_grad()
def describe(
    name: str, tensor_kind: str, tensor: Tensor, scale: float = 1.0
) -> BadTensor:
    """Statistics of one tensor; syncs."""
    values = local(tensor).detach()
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
        dtype=dtype_name(values.dtype),
    )


def plain_name(name: str) -> str:
    """Without what DDP, FSDP, compilers and checkpointing wrap around."""
    parts = [part for part in name.split('.') if part not in WRAPPERS]
    return '.'.join(filter(None, parts))
