import random
from typing import Any, Dict, Iterator

import numpy as np
import torch

__all__ = ['SetRngAfter', 'read_rng', 'set_rng']


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


class SetRngAfter:
    """Stands in for a loop's data iterator until the skipped batches of a
    resumed run are drawn: there is no hook at that moment.

    Args:
        loop: Whose ``dataloader_iterator`` it stands in for.
        state: Of :func:`read_rng`.
    """

    def __init__(self, loop: Any, state: Dict[str, Any]) -> None:
        self._loop, self._state = loop, state
        self._iterator = loop.dataloader_iterator
        self._num_skipped = loop.iter
        loop.dataloader_iterator = self

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._num_skipped == 0:
            set_rng(self._state)
            self._loop.dataloader_iterator = self._iterator
        self._num_skipped -= 1
        return next(self._iterator)
