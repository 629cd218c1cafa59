from typing import Union

import torch

from mmnanguard.core import GuardConfigError
from mmnanguard.numerics.base.dtype_name import dtype_name
from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER

__all__ = ['choose_dtype']

VALID = ('float16', 'bfloat16', 'float32', 'float64')


def choose_dtype(
    dtype: Union[str, torch.dtype, None], device: str
) -> torch.dtype:
    """MMEngine's ``dtype`` key, and 'auto'.

    Args:
        dtype: 'auto' is bfloat16 where the hardware has it, or where PyTorch
            has no float16 (below), else float16.
            None is what MMEngine takes: bfloat16 on a CPU, else float16.
        device: Type of the device that holds the parameters.

    Raises:
        GuardConfigError: If it is none of these, or float16 on a CPU with a
            PyTorch before 2.3.
    """
    has_float16 = device != 'cpu' or HAS_CPU_SCALER
    if dtype == 'auto':
        is_float16 = not has_native_bf16(device) and has_float16
        return torch.float16 if is_float16 else torch.bfloat16
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
    return getattr(torch, dtype)


def has_native_bf16(device: str) -> bool:
    """False where bfloat16 is merely emulated, which is slow."""
    if device == 'cuda':
        try:  # counts emulation unless told not to
            return torch.cuda.is_bf16_supported(including_emulation=False)
        except TypeError:  # before PyTorch 2.4, which never counted it
            return torch.cuda.is_bf16_supported()
    if device == 'cpu':
        probes = ('_is_avx512_bf16_supported', '_is_amx_tile_supported')
        return any(
            getattr(torch.cpu, probe, lambda: False)() for probe in probes
        )
    return False
