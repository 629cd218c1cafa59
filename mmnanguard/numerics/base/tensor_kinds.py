"""The kinds of tensors that a model may hold, and what can be done with each.

Most kernels exist for ordinary tensors only. The functions here say which
tensors are ordinary, and read the others as far as they can be read. They
never raise and never run a kernel that is missing: some kernels end the
process on a quantized tensor.
"""

from typing import Any, Optional, Tuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .shards import local

__all__ = [
    'copy_of',
    'distinct_memory',
    'has_plain_kernels',
    'is_ordinary',
    'real_values',
    'stored_values',
    'tensor_of',
    'write',
]

INTEGERS = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32),
    torch.int64,
)
COMPRESSED = (
    *(torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr),
    torch.sparse_bsc,
)
# Two numbers in a byte, none of which can be NaN. PyTorch before 2.8 has none.
FLOAT4 = getattr(torch, 'float4_e2m1fn_x2', None)
# The types of numbers of an array that a tensor can share.
ARRAY_FLOATS = ('float16', 'float32', 'float64', 'complex64', 'complex128')
# The types that are most frequent, for which no attribute is looked up.
PLAIN_TYPES = (Tensor, nn.Parameter)
PLAIN_FUNCTIONS = (
    vars(Tensor)['__torch_function__'].__func__,
    nn.Parameter.__torch_function__,
)


def is_ordinary(tensor: Tensor) -> bool:
    """Whether a tensor is strided memory whose bits can be read and written.

    Its elements may be of any type of a whole number of bytes. Quantized,
    sparse, nested, meta, uninitialized and inference tensors are not
    ordinary, and neither are subclasses that run operations in their own way.
    """
    return (
        has_plain_functions(type(tensor))
        and has_plain_kernels(tensor)
        and tensor.layout is torch.strided
        and is_whole_bytes(tensor.dtype)
        and not (
            tensor.is_nested
            or tensor.is_meta
            or tensor.is_inference()
            # Kernels for many tensors refuse negated and conjugated views.
            or tensor.is_neg()
            or tensor.is_conj()
        )
    )


def has_plain_functions(kind: Any) -> bool:
    """Whether a type of tensors leaves PyTorch's functions as they are."""
    if kind in PLAIN_TYPES:
        return True
    function = kind.__torch_function__
    # A method of a class differs from the equal method of its base.
    return getattr(function, '__func__', function) in PLAIN_FUNCTIONS


def has_plain_kernels(tensor: Tensor) -> bool:
    """Whether PyTorch's own kernels work on the memory of a tensor."""
    kind = type(tensor)
    return kind in PLAIN_TYPES or (
        kind.__torch_dispatch__ is Tensor.__torch_dispatch__
        and not is_lazy(tensor)
    )


def is_whole_bytes(dtype: torch.dtype) -> bool:
    """Whether elements of the type can be copied and viewed as bytes."""
    return (
        dtype.is_floating_point
        or dtype.is_complex
        or dtype in INTEGERS
        # PyTorch before 2.3 has no unsigned integers of several bytes.
        or str(dtype) in ('torch.uint16', 'torch.uint32', 'torch.uint64')
    )


def stored_values(tensor: Tensor) -> Optional[Tensor]:
    """Return the elements that a tensor stores, as ordinary memory.

    The result is detached and shares memory with the tensor, unless that is a
    negated or conjugated view. A sharded tensor has this rank's part, and the
    elements that a sparse tensor does not store are zeros.

    Returns:
        None if the elements cannot be read.
    """
    if not has_plain_kernels(tensor):
        part = local(tensor)
        return None if part is tensor else stored_values(part)
    # A subclass may run any code even when an attribute is read.
    with torch._C.DisableTorchFunctionSubclass():
        values = tensor.detach()
    if values.layout is torch.sparse_coo:
        values = values._values()
    elif values.layout in COMPRESSED:
        values = values.values()
    elif values.is_neg() or values.is_conj():
        values = values.resolve_neg().resolve_conj()
    if is_ordinary(values) or is_readable_inference(values):
        return values
    return None


def is_readable_inference(tensor: Tensor) -> bool:
    """Whether a tensor is ordinary but for being made in inference mode."""
    if not tensor.is_inference():
        return False
    # A copy outside of inference mode is a normal tensor.
    return is_ordinary(tensor[:0].clone() if tensor.dim() else tensor.clone())


def real_values(tensor: Tensor) -> Optional[Tensor]:
    """Return the elements of a tensor as real numbers that can be non-finite.

    Complex numbers become pairs, and types of 8 bits become float32. No sync.

    Returns:
        A tensor of 16, 32 or 64 bits; None if there are no floating-point
        numbers, or if they cannot be read.
    """
    values = stored_values(tensor)
    if values is None or values.dtype is FLOAT4 or values.numel() == 0:
        return None
    if values.is_complex():
        values = torch.view_as_real(values)
    if not values.is_floating_point():
        return None
    # Few operations are implemented for floating types of 8 bits.
    if values.element_size() == 1:
        return values.float()
    return values


def tensor_of(value: object) -> Optional[Tensor]:
    """Return a tensor, or an array's floating-point numbers as a tensor.

    The result shares memory with the array where that is possible.

    Returns:
        None for any other value. NaN in a masked array is masked.
    """
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, np.ndarray) or isinstance(
        value, np.ma.MaskedArray
    ):
        return None
    if value.dtype.name not in ARRAY_FLOATS:
        return None
    # Tensors have no other byte order, and cannot be read-only.
    dtype = value.dtype.newbyteorder('=')
    return torch.from_numpy(np.require(value, dtype, ['C', 'W']))


def distinct_memory(tensor: Tensor) -> Tensor:
    """Return a view of an ordinary tensor in which no memory occurs twice.

    An expanded tensor cannot be written to. The view has each of its elements
    once, and where dimensions overlap otherwise, all memory in between.
    """
    if tensor.is_contiguous():
        return tensor
    for dim, step in enumerate(tensor.stride()):
        if step == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    # The bytes that all inner dimensions reach.
    extent = 1
    for step, size in sorted(zip(tensor.stride(), tensor.shape)):
        if size > 1:
            if step < extent:
                return whole_range(tensor)
            extent += step * (size - 1)
    return tensor


def whole_range(tensor: Tensor) -> Tensor:
    """Return all memory from a tensor's first element to its last."""
    extent = 1
    for step, size in zip(tensor.stride(), tensor.shape):
        extent += step * (size - 1)
    return tensor.as_strided((extent,), (1,), tensor.storage_offset())


@torch.no_grad()
def copy_of(tensor: Tensor) -> Optional[Tensor]:
    """Return a copy of a tensor that :func:`write` can write back, or None."""
    if is_lazy(tensor):
        return None
    try:
        # A subclass may run any code, and may raise anything.
        copy = tensor.detach().clone()
        write(copy, tensor)
    except Exception:
        return None
    return copy


@torch.no_grad()
def write(target: Tensor, source: Tensor) -> None:
    """Write the content of ``source`` to a tensor of the same kind.

    Raises:
        Exception: If the tensor cannot be written to; a subclass may raise
            anything.
    """
    if has_plain_kernels(target) and not target.is_nested:
        target, source = once(target, source)
    if target.is_inference():
        with torch.inference_mode():
            target.copy_(source)
    else:
        target.copy_(source)


def once(target: Tensor, source: Tensor) -> Tuple[Tensor, Tensor]:
    """Return the part of two equal tensors that fills an expanded target."""
    if target.layout is torch.strided:
        for dim, step in enumerate(target.stride()):
            if step == 0 and target.shape[dim] > 1:
                target = target.narrow(dim, 0, 1)
                source = source.narrow(dim, 0, 1)
    return target, source
