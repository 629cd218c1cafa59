"""PyTorch's GradScaler, under one name for all versions."""

from typing import Any

import torch

__all__ = ['HAS_CPU_SCALER', 'GradScaler', 'OptState']

# New in PyTorch 2.3, as is float16 in autocast on a CPU.
HAS_CPU_SCALER = hasattr(torch.amp, 'GradScaler')

if HAS_CPU_SCALER:
    from torch.amp.grad_scaler import GradScaler, OptState
else:
    from torch.cuda.amp import GradScaler as CudaGradScaler
    from torch.cuda.amp.grad_scaler import OptState

    class GradScaler(CudaGradScaler):  # type: ignore[no-redef]
        """A scaler with the arguments of later versions, disabled on a CPU."""

        def __init__(
            self, device: str = 'cuda', *, enabled: bool = True, **keys: Any
        ) -> None:
            enabled = enabled and device != 'cpu'
            super().__init__(enabled=enabled, **keys)
