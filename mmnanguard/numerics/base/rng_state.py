import random
from typing import Any, Dict

import numpy as np
import torch

__all__ = ['read_rng', 'set_rng']


def read_rng() -> Dict[str, Any]:
    """State of this process's generators; tensors and builtins only."""
    kind, keys, *rest = np.random.get_state()
    version, internal, gauss = random.getstate()
    return dict(
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state_all()
        if torch.cuda.is_available()
        else [],
        numpy=[kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        python=[version, list(internal), gauss],
    )


def set_rng(state: Dict[str, Any]) -> None:
    torch.set_rng_state(state['torch'])
    if state['cuda'] and len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state['cuda'])
    kind, keys, *rest = state['numpy']
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state['python']
    random.setstate((version, tuple(internal), gauss))
