"""The state of the random generators of Python, NumPy and PyTorch."""

import random
from typing import Any, Dict, Optional

import numpy as np
import torch

__all__ = ['RngState', 'read_rng', 'set_rng']

# The state of each generator in tensors and builtins, by generator.
RngState = Dict[str, Any]


def read_rng() -> RngState:
    """Return the state of this process's generators, in plain types.

    Returns:
        The state of each generator ('torch', 'cuda', 'device', 'numpy',
        'python') in tensors and builtins only, so that it loads with
        ``weights_only``. 'device' is the state of an accelerator other than
        CUDA, or None.
    """
    kind, keys, *rest = np.random.get_state()
    version, internal, gauss = random.getstate()
    cuda, device, other = [], None, other_accelerator()
    if torch.cuda.is_available():
        cuda = torch.cuda.get_rng_state_all()
    elif other is not None:
        device = other.get_rng_state()
    return dict(
        torch=torch.get_rng_state(),
        cuda=cuda,
        device=device,
        # int64, because PyTorch before 2.3 has no uint32.
        numpy=[kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        python=[version, list(internal), gauss],
    )


def set_rng(state: RngState) -> None:
    """Set the state that :func:`read_rng` returned.

    The state of GPUs is set only if this machine has as many GPUs.
    """
    # MMEngine loads a checkpoint that it resumes from to the accelerator, but
    # generators take their states from the host.
    torch.set_rng_state(state['torch'].cpu())
    # A dump may be replayed on a machine without the GPUs of the run.
    if state['cuda'] and len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([part.cpu() for part in state['cuda']])
    # Version 0.1 saved no state of other accelerators.
    device, other = state.get('device'), other_accelerator()
    if device is not None and other is not None:
        other.set_rng_state(device.cpu())
    kind, keys, *rest = state['numpy']
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))
    version, internal, gauss = state['python']
    # random.setstate refuses a list.
    random.setstate((version, tuple(internal), gauss))


def other_accelerator() -> Optional[Any]:
    """Return the module of an accelerator other than CUDA, such as torch.npu.

    Returns:
        None if there is none, or if it has no random state to read.
    """
    # Devices from outside of PyTorch, such as Ascend's, share one name.
    name = torch._C._get_privateuse1_backend_name()
    for module in map(vars(torch).get, (name, 'mps')):
        has_state = hasattr(module, 'get_rng_state')
        if has_state and is_available(module):
            return module
    return None


def is_available(module: Any) -> bool:
    """Whether the device of a module is there."""
    if module is vars(torch).get('mps'):
        return torch.backends.mps.is_available()
    return bool(module.is_available())
