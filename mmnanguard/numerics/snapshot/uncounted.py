"""Changes that the version counter of a tensor does not count."""

import sys
from typing import List

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ['sum_bits', 'writes_uncounted']

# Integer types of as many bytes, to read the bits of any element.
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# The base classes of modules with statistics of quantization, by module.
QUANTIZERS = {
    'torch.ao.quantization': ('ObserverBase', 'FakeQuantizeBase'),
    'torchao.quantization.pt2e': ('ObserverBase', 'FakeQuantizeBase'),
}
# Length of the rows that a checksum adds up.
WIDTH = 1024


@torch.no_grad()
def sum_bits(values: Tensor) -> Tensor:
    """Return a checksum in which the place of each element counts.

    Does not sync the device.

    Args:
        values: An ordinary tensor.
    """
    values = values.detach()
    if values.is_complex():
        values = torch.view_as_real(values)
    flat = values.view(BITS[values.dtype.itemsize]).reshape(-1)
    size = flat.numel() - flat.numel() % WIDTH
    # By rows and by columns, so that no large ramp is needed.
    body = flat[:size].view(-1, WIDTH)
    return (
        ramp_sum(body.sum(1))
        + 31 * ramp_sum(body.sum(0))
        + ramp_sum(flat[size:])
    )


def ramp_sum(values: Tensor) -> Tensor:
    """Return the sum of 1 * values[0], 2 * values[1] and so on."""
    # A plain sum would miss a permutation (a queue that rotates).
    ramp = torch.arange(1, len(values) + 1, device=values.device)
    return (values.long() * ramp).sum()


def writes_uncounted(owner: nn.Module) -> bool:
    """Whether a module's kernels write to its buffers without counting.

    So do norm layers and, in training for quantization, the modules that
    observe ranges or imitate quantized numbers. A user may switch them on
    late, when no tensor is compared any more.
    """
    kinds: List[type] = [_NormBase]
    for module, names in QUANTIZERS.items():
        # A module that is not imported has no instances.
        for name in names:
            kind = getattr(sys.modules.get(module), name, None)
            if kind is not None:
                kinds.append(kind)
    return isinstance(owner, tuple(kinds))
