"""The names and statistics of the tensors that a rejection is about."""

import math
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor, nn

from mmnanguard.core import BadTensor, Cause
from mmnanguard.core.causes import CAUSES

from ..base.dtype_name import dtype_name
from ..base.shards import local
from ..base.tensor_kinds import real_values
from .observe import Reading, nonfinite_indices

__all__ = ['MAX_BLAMED', 'Slice', 'TensorNames', 'blame', 'plain_name']

MAX_BLAMED = 5
WRAPPERS = (
    'module',
    '_orig_mod',
    '_checkpoint_wrapped_module',
    '_fsdp_wrapped_module',
)


class Slice(NamedTuple):
    """A part of a flat tensor that belongs to one parameter.

    Attributes:
        param: The parameter of the model.
        start: The first element of the part in the flat tensor.
        size: The number of elements of the part.
    """

    param: Tensor
    start: int
    size: int


NOTHING_FLAT: Mapping[int, Sequence[Slice]] = {}


class TensorNames:
    """The names of parameters and buffers.

    Args:
        models: The models to take names from, in this order.
        groups: The optimizer's parameter groups, which give names to the
            parameters that are in none of the models.
        slices: The parts of flat tensors that stand for several parameters,
            by the id of the flat tensor.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        groups: Sequence[Mapping[str, Any]],
        slices: Mapping[int, Sequence[Slice]] = NOTHING_FLAT,
    ) -> None:
        self._slices = slices
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
                # Some kinds of tensors have no shape to ask for.
                if id(param) not in self._params:
                    self._params[id(param)] = [
                        f'group {index}, tensor {position}, shape '
                        f'{tuple(param.shape)}'
                    ]

    def of_param(self, param: Tensor) -> str:
        """Return the name of a parameter; a shared one has several, joined."""
        slices = self._slices.get(id(param))
        if slices is not None:
            # The parts have names, see split().
            return ', '.join([self.of_param(part.param) for part in slices])
        return ' = '.join(self._params[id(param)])

    def split(self, param: Tensor, values: Tensor) -> List[Tuple[str, Tensor]]:
        """Return names and the part of ``values`` that each name stands for.

        A flat parameter of FSDP1 or DeepSpeed holds several parameters, or
        parts of them; any other parameter has one name.

        Args:
            param: The parameter.
            values: This rank's part of the parameter or of its gradient.
        """
        slices = self._slices.get(id(param))
        if slices is not None:
            parts = []
            for part, start, size in slices:
                part_of_it = values.reshape(-1).narrow(0, start, size)
                parts.append((self.of_param(part), part_of_it))
            return parts[::-1]  # nearest to the loss first
        name = self.of_param(param)
        names = getattr(param, '_fqns', None)
        infos = getattr(param, '_shard_param_infos', None)
        if names is None or infos is None:
            return [(name, values)]
        # The names in a flat parameter begin below the module that owns it.
        prefix = name[: -len(name.split('.')[-1])]
        parts = []
        for part, where in zip(names, infos):
            # This rank may hold nothing of a parameter.
            if where.in_shard:
                start, size = where.offset_in_shard, where.numel_in_shard
                parts.append((prefix + part, values.narrow(0, start, size)))
        return parts[::-1]  # nearest to the loss first

    def of_buffer(self, owner: nn.Module, key: str) -> str:
        """Return the name of a buffer."""
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
    """Name a few of the tensors that a rejection is about.

    Gradients nearest to the loss come first. Backward reaches them first, so
    the fault began in the first one. Must run before anything is restored or
    set to zero. Syncs the device.

    Args:
        cause: The cause of the rejection, which decides about the kind of
            tensor that is blamed.
        params: The parameters of ``grads``.
        grads: The gradients on this rank, still scaled.
        weights: All parameters, trained or not.
        reading: The numbers that were read of ``grads``.
        scale: The loss scale of ``grads``.
        names: The names of parameters and buffers.
    """
    blamed = CAUSES[cause].blames
    is_weight = blamed == 'weight'
    if blamed == 'buffer':
        return describe_buffers(reading.changes.bad, names)
    if is_weight and reading.changes.lost:
        return describe_buffers(reading.changes.lost, names)
    parts: List[Tuple[str, Tensor]] = []
    if is_weight:
        for index in nonfinite_indices(weights)[:MAX_BLAMED]:
            values = local(weights[index])
            parts += names.split(weights[index], values)
    else:
        has_largest = blamed == 'largest gradient'
        for index in suspects(reading.norms, has_largest)[:MAX_BLAMED]:
            parts += names.split(params[index], grads[index])
    kind = 'gradient'
    if is_weight:
        kind, scale = 'weight', 1.0
    culprits = [describe(name, kind, values, scale) for name, values in parts]
    # If any tensor has bad elements, the others are no culprits: they are
    # further parts of a flat parameter. A norm can also overflow over finite
    # elements.
    nonfinite = [tensor for tensor in culprits if tensor.count]
    return tuple((nonfinite or culprits)[:MAX_BLAMED])


def suspects(norms: Sequence[float], has_largest: bool) -> List[int]:
    """Return the indices of the bad gradients, nearest to the loss first.

    Args:
        norms: The norms of all gradients.
        has_largest: Whether the largest gradient is the culprit if none is
            non-finite.
    """
    bad = [i for i, norm in enumerate(norms) if not math.isfinite(norm)]
    if has_largest and norms and not bad:
        return [max(range(len(norms)), key=norms.__getitem__)]
    return bad[::-1]


def describe_buffers(
    buffers: Sequence[Tuple[nn.Module, str]], names: TensorNames
) -> Tuple[BadTensor, ...]:
    """Describe the first few buffers, given as (owner, key)."""
    described = []
    for owner, key in buffers[:MAX_BLAMED]:
        values = local(getattr(owner, key))
        name = names.of_buffer(owner, key)
        described.append(describe(name, 'buffer', values))
    return tuple(described)


@torch.no_grad()
def describe(
    name: str, tensor_kind: str, values: Tensor, scale: float = 1.0
) -> BadTensor:
    """Return the statistics of a tensor on this rank. Syncs the device.

    Complex numbers count as pairs, and a sparse tensor has the elements that
    it stores.
    """
    dtype = values.dtype
    numbers = real_values(values)
    if numbers is None:
        # A gradient whose norm is bad, and whose elements cannot be read.
        numbers = torch.zeros(0)
    values = numbers
    finite = values[torch.isfinite(values)].float() / scale
    count = values.numel() - finite.numel()
    kind = 'inf' if count else 'huge'
    if torch.isnan(values).any():
        kind = 'nan'
    return BadTensor(
        name=name,
        tensor=tensor_kind,
        kind=kind,
        count=count,
        numel=values.numel(),
        min=finite.min().item() if finite.numel() else math.nan,
        max=finite.max().item() if finite.numel() else math.nan,
        dtype=dtype_name(dtype),
    )


def plain_name(name: str) -> str:
    """Return a name without the wrappers of DDP, FSDP and compilers."""
    parts = [part for part in name.split('.') if part not in WRAPPERS]
    return '.'.join(filter(None, parts))
