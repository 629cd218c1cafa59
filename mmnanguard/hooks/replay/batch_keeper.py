import copy
import pickle
from typing import Any, Callable, Dict, NamedTuple, Set, Tuple

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

__all__ = ['BatchKeeper', 'KeptBatch']

NUM_COMPARED = 3
# What is never changed in place.
CONSTANT = (str, bytes, int, float, complex, bool, type(None), type)
Path = Tuple[Any, ...]


class KeptBatch(NamedTuple):
    """One batch as the data loader gave it.

    Attributes:
        data: Copied where training changes it.
        is_exact: Nothing of it is known to have changed since.
    """

    data: object
    is_exact: bool = True

    def fresh(self) -> Any:
        """A copy that may be spoilt, but for what cannot be copied."""

        def copied(_: Path, leaf: object) -> Any:
            try:
                return copy.deepcopy(leaf)
            except Exception:  # a user's object: whatever it raises
                return leaf

        return walk(self.data, copied)


class BatchKeeper:
    """Keeps batches to run them again, at little cost.

    Preprocessors, augments and heads change some batches in place. Over the
    first iterations everything is copied and compared afterwards; later on
    only containers, and what was seen to change.
    """

    def __init__(self) -> None:
        self._num_compared = 0
        self._changing: Set[Path] = set()
        self._lost: Set[Path] = set()  # nor can it be copied or compared

    def keep(self, batch: object) -> KeptBatch:
        """Before training sees it; no sync."""
        is_learning = self._num_compared < NUM_COMPARED

        def keep_leaf(path: Path, leaf: object) -> Any:
            path = general(path)
            is_copied = is_learning or path in self._changing
            if path in self._lost or not is_copied:
                return leaf
            if isinstance(leaf, Tensor):
                return leaf.detach().clone()
            try:
                return copy.deepcopy(leaf)
            except Exception:  # a user's object: whatever it raises
                self._lost.add(path)
                return leaf

        data = walk(batch, keep_leaf)
        return KeptBatch(data, not self._lost)

    def compare(self, batch: object, kept: KeptBatch) -> None:
        """After training has seen it; syncs, in the first iterations only."""
        if self._num_compared >= NUM_COMPARED:
            return
        self._num_compared += 1
        before: Dict[Path, Any] = {}
        walk(kept.data, lambda path, leaf: before.setdefault(path, leaf))

        def compare_leaf(path: Path, leaf: object) -> Any:
            if path in before and general(path) not in self._lost:
                try:
                    if not same(before[path], leaf):
                        self._changing.add(general(path))
                except Exception:  # as above
                    self._lost.add(general(path))
            return leaf

        walk(batch, compare_leaf)


def general(path: Path) -> Path:
    """The place in a batch, whichever sample it is of."""
    return tuple('*' if isinstance(key, int) else key for key in path)


def walk(value: Any, leaf: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """Rebuild containers, with leaves (tensors, arrays, objects) as ``leaf``
    says.
    """
    if isinstance(value, BaseDataElement):
        new = copy.copy(value)
        for key, item in vars(value).items():
            vars(new)[key] = walk(item, leaf, (*path, key))
        return new
    if type(value) is dict:
        return {k: walk(v, leaf, (*path, k)) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, '_fields'):
        parts = [walk(v, leaf, (*path, i)) for i, v in enumerate(value)]
        return type(value)(*parts)
    if type(value) in (list, tuple):
        parts = [walk(v, leaf, (*path, i)) for i, v in enumerate(value)]
        return type(value)(parts)
    if type(value) is set:
        return set(value)
    return value if isinstance(value, CONSTANT) else leaf(path, value)


def same(left: Any, right: Any) -> bool:
    """Bit for bit, NaN included."""
    if not isinstance(left, Tensor):
        return pickle.dumps(left) == pickle.dumps(right)
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    if left.numel() == 0:  # may be without a stride, and so without bytes
        return True
    return torch.equal(
        left.cpu().contiguous().flatten().view(torch.uint8),
        right.cpu().contiguous().flatten().view(torch.uint8),
    )
