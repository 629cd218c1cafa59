"""The state of the random generators of Python, NumPy and PyTorch."""

import random
from typing import Any, Dict

import numpy as np
import torch

__all__ = ['RngState', 'read_rng', 'set_rng']

# The state of each generator in tensors and builtins, by generator.
RngState = Dict[str, Any]


def read_rng() -> RngState:
    """Return the state of this process's generators, in plain types.

    Returns:
        The state of each generator ('torch', 'cuda', 'numpy', 'python') in
        tensors and builtins only, so that it loads with ``weights_only``.
    """
    kind, keys, *rest = np.random.get_state()
    version, internal, gauss = random.getstate()
    cuda = []
    if torch.cuda.is_available():
        cuda = torch.cuda.get_rng_state_all()
    return dict(
        torch=torch.get_rng_state(),
        cuda=cuda,
        # int64, because PyTorch before 2.3 has no uint32.
        numpy=[kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        python=[version, list(internal), gauss],
    )


def set_rng(state: RngState) -> None:
    """Set the state that :func:`read_rng` returned.

    The state of GPUs is set only if this machine has as many GPUs.
    """
    torch.set_rng_state(state['torch'])
    # A dump may be replayed on a machine without the GPUs of the run.
    if state['cuda'] and len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state['cuda'])
    kind, keys, *rest = state['numpy']
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state['python']
    # random.setstate refuses a list.
    random.setstate((version, tuple(internal), gauss))
