"""Autocast of the simulated device: a few operations of CUDA's lists."""

import torch
from torch.utils import _pytree as pytree

NARROW = ('conv1d', 'conv2d', 'conv3d', 'linear', 'matmul', 'mm', 'addmm')
NARROW += ('bmm', 'baddbmm', 'scaled_dot_product_attention')
WIDE = ('cross_entropy_loss', 'layer_norm', 'log_softmax', 'mse_loss')
WIDE += ('nll_loss', 'norm', 'pow', 'softmax', 'sum', 'group_norm')


def autocast_kernel(op, is_narrow, device):
    """Return an operation that casts its arguments under autocast."""
    key = torch._C.DispatchKey.AutocastPrivateUse1
    keys = torch._C.DispatchKeySet(key)

    def run(*args, **kwargs):
        narrow = torch.get_autocast_dtype(device)
        floats = (torch.float32, torch.float16, torch.bfloat16)

        def cast(value):
            is_tensor = isinstance(value, torch.Tensor)
            if not is_tensor or value.device.type != device:
                return value
            if value.dtype not in floats:
                return value
            return value.to(narrow if is_narrow else torch.float32)

        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*pytree.tree_map(cast, args), **kwargs)

    return run


def register_autocast(library, device):
    """Register the operations that autocast narrows and widens."""
    for names, is_narrow in ((NARROW, True), (WIDE, False)):
        for name in names:
            packet = getattr(torch.ops.aten, name)
            for overload in packet.overloads():
                if 'out' in overload or 'Dimname' in overload:
                    continue
                op = getattr(packet, overload)
                kernel = autocast_kernel(op, is_narrow, device)
                label = name if overload == 'default' else op._name[6:]
                library.impl(label, kernel, 'AutocastPrivateUse1')
