import copy
from typing import Any, Callable, Dict, List, NamedTuple, Set, Tuple

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

__all__ = ['BatchKeeper', 'KeptBatch']

NUM_COMPARED = 3
Path = Tuple[Any, ...]


class KeptBatch(NamedTuple):
    """One batch as the data loader gave it.

    Attributes:
        data: Copied where training changes it.
        is_exact: Nothing of it is known to have changed since.
    """

    data: Any
    is_exact: bool = True

    def fresh(self) -> Any:
        """A copy that may be spoilt."""
        return copy.deepcopy(self.data)


class BatchKeeper:
    """Keeps batches to run them again, at little cost.

    Preprocessors, augments and heads change some batches in place. Over the
    first iterations everything is copied and compared afterwards; later on
    only containers, and those tensors that were seen to change.
    """

    def __init__(self) -> None:
        self._num_compared = 0
        self._changing: Set[Path] = set()

    def keep(self, batch: Any) -> KeptBatch:
        """Before training sees it; no sync."""
        is_learning = self._num_compared < NUM_COMPARED

        def keep_leaf(path: Path, leaf: Any) -> Any:
            if is_learning or general(path) in self._changing:
                return leaf.clone() if torch.is_tensor(leaf) else leaf.copy()
            return leaf

        return KeptBatch(walk(batch, keep_leaf))

    def compare(self, batch: Any, kept: KeptBatch) -> None:
        """After training has seen it; syncs, in the first iterations only."""
        if self._num_compared >= NUM_COMPARED:
            return
        self._num_compared += 1
        before: Dict[Path, Any] = {}
        walk(kept.data, lambda path, leaf: before.setdefault(path, leaf))

        def compare_leaf(path: Path, leaf: Any) -> Any:
            if path in before and not same(before[path], leaf):
                self._changing.add(general(path))
            return leaf

        walk(batch, compare_leaf)


def general(path: Path) -> Path:
    """The place in a batch, whichever sample it is of."""
    return tuple('*' if isinstance(key, int) else key for key in path)


def walk(value: Any, leaf: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """Rebuild containers, with leaves (tensors, arrays) as ``leaf`` says."""
    if isinstance(value, (Tensor, np.ndarray)):
        return leaf(path, value)
    if isinstance(value, BaseDataElement):
        data = {
            key: walk(item, leaf, (*path, key)) for key, item in value.items()
        }
        new = copy.copy(value)
        new.__dict__ = dict(value.__dict__)
        new.__dict__.update(data)
        for name in ('_metainfo_fields', '_data_fields'):
            new.__dict__[name] = set(getattr(value, name))
        return new
    if isinstance(value, dict):
        items = {k: walk(v, leaf, (*path, k)) for k, v in value.items()}
        return items if type(value) is dict else type(value)(items)
    if isinstance(value, (list, tuple)):
        parts = [walk(v, leaf, (*path, i)) for i, v in enumerate(value)]
        if hasattr(value, '_fields'):
            return type(value)(*parts)
        return type(value)(parts)
    return value


def same(left: Any, right: Any) -> bool:
    """Bit for bit, NaN included."""
    if torch.is_tensor(left):
        return (
            left.shape == right.shape
            and left.dtype == right.dtype
            and torch.equal(
                left.cpu().contiguous().flatten().view(torch.uint8),
                right.cpu().contiguous().flatten().view(torch.uint8),
            )
        )
    return left.shape == right.shape and left.tobytes() == right.tobytes()


def tensors_in(batch: Any) -> List[Tensor]:
    found: List[Tensor] = []
    walk(
        batch,
        lambda path, leaf: found.append(leaf) if torch.is_tensor(leaf) else 0,
    )
    return found
