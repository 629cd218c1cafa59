"""The ``dtype`` key of the AMP wrapper."""

from typing import Union

import torch

from mmnanguard.core import GuardConfigError
from mmnanguard.numerics.base.dtype_name import dtype_name
from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER

__all__ = ['choose_dtype']

VALID = ('float16', 'bfloat16', 'float32', 'float64')


def choose_dtype(
    dtype: Union[str, torch.dtype, None],
    device: str,
    weights: torch.dtype = torch.float32,
) -> torch.dtype:
    """Return the type that autocast is to use.

    Args:
        dtype: The value of the key. 'auto' means bfloat16 where the hardware
            has it, or where PyTorch has no float16, else float16. None means
            MMEngine's choice: bfloat16 on a CPU, else float16. Both mean
            bfloat16 if the weights are in bfloat16, which float16 would only
            narrow.
        device: The type of the device that holds the parameters.
        weights: The type of the parameters.

    Raises:
        GuardConfigError: If the value is not valid, or if it is float16 on a
            CPU with a PyTorch before 2.3.
    """
    if dtype in ('auto', None) and weights is torch.bfloat16:
        return torch.bfloat16
    has_float16 = device != 'cpu' or HAS_CPU_SCALER
    if dtype == 'auto':
        # bfloat16 needs no loss scale, so it comes first where it is fast.
        if has_float16 and not has_native_bf16(device):
            return torch.float16
        return torch.bfloat16
    if dtype is None:
        return torch.bfloat16 if device == 'cpu' else torch.float16
    if isinstance(dtype, torch.dtype):
        dtype = dtype_name(dtype)
    if dtype not in VALID:
        raise GuardConfigError(
            f"optim_wrapper.dtype is {dtype!r}: it must be 'auto', None or "
            f'one of {", ".join(VALID)}.'
        )
    if dtype == 'float16' and not has_float16:
        raise GuardConfigError(
            "optim_wrapper.dtype is 'float16': on a CPU that needs "
            f'torch>=2.3, and this is {torch.__version__}. Use '
            "dtype='bfloat16', or float32: "
            'type=mmnanguard.NanGuardOptimWrapper.'
        )
    named: torch.dtype = getattr(torch, dtype)
    return named


def has_native_bf16(device: str) -> bool:
    """Whether the hardware has bfloat16; emulation is slow."""
    if device == 'cuda':
        try:  # the default also counts emulation
            return bool(
                torch.cuda.is_bf16_supported(including_emulation=False)
            )
        except TypeError:  # the argument came with PyTorch 2.4
            return bool(torch.cuda.is_bf16_supported())
    if device == 'cpu':
        # Older versions of PyTorch lack these private functions.
        for name in ('_is_avx512_bf16_supported', '_is_amx_tile_supported'):
            probe = getattr(torch.cpu, name, None)
            if probe is not None and probe():
                return True
    return False
