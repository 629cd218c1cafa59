"""The distinction between a pole of an operation and an overflow of a dtype.

An operation that is run again in float64 is finite if only its dtype was too
small. If it is not, as log(0) or 1/0, no dtype and no smaller number helps.
"""

from typing import List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from .sample_tracker import Args, Kwargs, Operation

__all__ = ['OperationCall', 'is_undefined', 'operands_of']

# Their results leave even float64 for inputs of about 700, which is no pole.
EXPONENTIALS = ('exp', 'exp2', 'expm1', 'sinh', 'cosh', 'linalg_matrix_exp')
HALF_AND_SINGLE = (torch.float16, torch.bfloat16, torch.float32)


class OperationCall(NamedTuple):
    """An operation and its arguments, as they were before it ran."""

    func: Operation
    args: Args
    kwargs: Kwargs

    @classmethod
    def before(
        cls, func: Operation, args: Args, kwargs: Kwargs
    ) -> 'OperationCall':
        """Return the call; arguments that the operation writes are copied."""
        if func._schema.is_mutable:
            args, kwargs = tree_map(copy_of, (args, kwargs))
        return cls(func, args, kwargs)


def copy_of(leaf: object) -> object:
    """Return a copy of a dense tensor, and any other object unchanged."""
    if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
        return leaf.detach().clone()
    return leaf


def is_undefined(call: OperationCall) -> Optional[bool]:
    """Whether the operation is not finite in float64 either; syncs.

    Returns:
        True at a pole and where an operation is not defined (1/0, log(0),
        sqrt(-1)); False if the dtype overflows; None if that is not known,
        because the operation does not run in float64 or draws random numbers.
    """
    func, args, kwargs = call
    # Another draw would change what the rest of the replay draws.
    if torch.Tag.nondeterministic_seeded in func.tags:
        return None
    try:
        args, kwargs = tree_map(in_float64, (args, kwargs))
        outputs = tree_flatten(func(*args, **kwargs))[0]
    except Exception:
        # Kernels that lack float64 raise errors of many types, and a large
        # operation may need too much memory.
        return None
    tensors = [leaf for leaf in outputs if isinstance(leaf, Tensor)]
    if all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        return False
    name = func._schema.name.split('::')[-1].rstrip('_')
    return name not in EXPONENTIALS


def in_float64(leaf: object) -> object:
    """Return a copy of a tensor, or a dtype, in float64."""
    if isinstance(leaf, Tensor) and leaf.dtype in HALF_AND_SINGLE:
        return leaf.detach().double()
    if isinstance(leaf, Tensor):
        return leaf.detach().clone()
    if leaf in HALF_AND_SINGLE:
        return torch.float64
    return leaf


def operands_of(call: OperationCall, output: Tensor) -> Tuple[float, ...]:
    """Return the numbers of which the first NaN, or else Inf, was made.

    Syncs. They are known only if the operation works element by element.

    Args:
        call: The operation.
        output: Its output, with at least one non-finite element.
    """
    # Of a ``where``, they are not the numbers that it judges.
    is_where = call.func._schema.name == 'aten::where'
    if torch.Tag.pointwise not in call.func.tags or is_where:
        return ()
    # Inf beside NaN may be a mask.
    bad = output.isnan()
    if not bad.any():
        bad = ~torch.isfinite(output)
    position = bad.flatten().nonzero()
    if len(position) == 0:
        return ()
    numbers: List[float] = []
    for leaf in tree_flatten((call.args, call.kwargs))[0]:
        if isinstance(leaf, Tensor):
            try:
                elements = leaf.detach().expand(output.shape).flatten()
            except RuntimeError:  # the shapes differ
                return ()
            numbers.append(float(elements[position[0]]))
        elif isinstance(leaf, (int, float)) and not isinstance(leaf, bool):
            numbers.append(float(leaf))
    # -0.0 would only puzzle the reader.
    return tuple(number + 0.0 for number in numbers)
