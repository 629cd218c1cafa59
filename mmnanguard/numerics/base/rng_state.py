"""The state of the random generators of Python, NumPy and PyTorch."""

import random
from typing import Any, Dict

import numpy as np
import torch

__all__ = ['RngState', 'read_rng', 'set_rng']

# By generator, its state in tensors and builtins.
RngState = Dict[str, Any]


def read_rng() -> RngState:
    """Return the state of this process's generators, in plain types.

    Returns:
        By generator ('torch', 'cuda', 'numpy', 'python'), its state in
        tensors and builtins only, so that it loads with ``weights_only``.
    """
    kind, keys, *rest = np.random.get_state()
    version, internal, gauss = random.getstate()
    has_cuda = torch.cuda.is_available()
    cuda = torch.cuda.get_rng_state_all() if has_cuda else []
    return dict(
        torch=torch.get_rng_state(),
        cuda=cuda,
        numpy=[kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        python=[version, list(internal), gauss],
    )


def set_rng(state: RngState) -> None:
    """Set the state that :func:`read_rng` returned.

    The state of GPUs is set only if there are as many as there were.
    """
    torch.set_rng_state(state['torch'])
    if state['cuda'] and len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state['cuda'])
    kind, keys, *rest = state['numpy']
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state['python']
    random.setstate((version, tuple(internal), gauss))
