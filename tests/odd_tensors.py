"""Tensors of all kinds that a model or a batch may hold."""

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


class Opaque(Tensor):
    """A tensor whose numbers are elsewhere, with no operation at all."""

    @staticmethod
    def __new__(cls, inner):
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=torch.float32
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return type(self).__name__

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        # As of torchao: an operation that nobody wrote.
        if func.overloadpacket.__name__ not in cls.OPERATIONS:
            raise NotImplementedError(f'{cls.__name__} has no {func}')
        args = tree_map_only(cls, lambda tensor: tensor.inner, args)
        return tree_map_only(Tensor, cls, func(*args, **(kwargs or {})))

    OPERATIONS = ('detach',)


class Copyable(Opaque):
    """A tensor that can be copied, and not be read."""

    OPERATIONS = ('detach', 'clone', 'copy_', 'alias', 'empty_like')


def values():
    return torch.arange(1.0, 7.0).reshape(2, 3)


def inference():
    with torch.inference_mode():
        return values()


def float4():
    return torch.zeros(2, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)


def pairs():
    return torch.view_as_complex(torch.ones(2, 3, 2))


KINDS = {
    'float8': lambda: values().to(torch.float8_e4m3fn),
    'quantized': lambda: torch.quantize_per_tensor(
        values(), 0.1, 3, torch.quint8
    ),
    'quantized by channel': lambda: torch.quantize_per_channel(
        values(), torch.ones(2), torch.zeros(2).long(), 0, torch.qint8
    ),
    'coo': lambda: values().to_sparse(),
    'coo with duplicates': lambda: torch.sparse_coo_tensor(
        torch.tensor([[0, 0], [1, 1]]), torch.ones(2), (2, 3)
    ),
    'csr': lambda: values().to_sparse_csr(),
    'bsr': lambda: torch.ones(4, 4).to_sparse_bsr((2, 2)),
    'nested': lambda: torch.nested.nested_tensor(
        [torch.ones(2, 3), torch.ones(4, 3)]
    ),
    'mkldnn': lambda: values().to_mkldnn(),
    'expanded': lambda: torch.ones(1, 3).expand(2, 3),
    'overlapping': lambda: torch.arange(6.0).unfold(0, 3, 1),
    'negated': lambda: pairs().conj().imag,
    'conjugated': lambda: pairs().conj(),
    'complex': lambda: values().to(torch.complex64),
    'complex32': lambda: values().to(torch.complex32),
    'inference': inference,
    'meta': lambda: values().to('meta'),
    'bool': lambda: values() > 2,
    'empty': lambda: torch.empty(0, 3),
    'opaque': lambda: Opaque(values()),
    'copyable': lambda: Copyable(values()),
}
if hasattr(torch, 'float4_e2m1fn_x2'):
    KINDS['float4'] = float4
LAZY = {
    'lazy parameter': nn.parameter.UninitializedParameter,
    'lazy buffer': nn.parameter.UninitializedBuffer,
}
# No file can hold these.
UNSAVABLE = ('meta', 'mkldnn', 'opaque', 'copyable')
# Kinds whose content forward passes cannot change in place.
CONSTANT = ('expanded', 'opaque', 'copyable', 'meta', 'inference')
