"""Batches as the data loader returned them, kept for a replay.

A batch is walked as a tree: its inner nodes are the containers that collate
functions make, and its leaves are tensors, arrays and other objects. Unlike
in ``_support.parts``, which looks into objects, an object is copied as a
whole: its parts may refer to it (such as the stores of a graph).
"""

import copy
import pickle
from typing import Any, Callable, Dict, NamedTuple, Set, Tuple

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from mmnanguard.numerics.base.tensor_kinds import copy_of, is_ordinary

__all__ = ['BatchKeeper', 'KeptBatch']

# A preprocessor treats every batch like the first. More than one batch is
# compared because of augments that change a batch only now and then.
NUM_COMPARED = 3
# Types whose objects cannot be changed in place.
CONSTANT = (str, bytes, int, float, complex, bool, type(None), type)
# The keys and indices that lead from a batch to a leaf.
Path = Tuple[object, ...]


class KeptBatch(NamedTuple):
    """A batch as the data loader returned it.

    Attributes:
        data: The batch, copied where training changes it.
        is_exact: Whether no part of it is known to have changed since.
    """

    data: object
    is_exact: bool = True

    def fresh(self) -> object:
        """Return a copy that a replay may change.

        The copy shares the objects that cannot be copied.
        """

        def copy_leaf(_: Path, leaf: object) -> object:
            try:
                return copy.deepcopy(leaf)
            except Exception:
                # A user's object may raise anything, and a replay that shares
                # it is better than none.
                return leaf

        return walk(self.data, copy_leaf)


class BatchKeeper:
    """Keeps batches for a replay, at little cost.

    Preprocessors, augments and heads change some batches in place. In the
    first iterations everything is copied, and compared after the iteration.
    Later only containers are copied, and the parts that were seen to change.
    """

    def __init__(self) -> None:
        self._num_compared = 0
        self._changing: Set[Path] = set()
        # Places of objects that can be neither copied nor compared.
        self._lost: Set[Path] = set()

    def keep(self, batch: object) -> KeptBatch:
        """Keep a batch before training changes it. No sync."""
        is_learning = self._num_compared < NUM_COMPARED

        def keep_leaf(path: Path, leaf: object) -> object:
            path = general(path)
            is_copied = is_learning or path in self._changing
            if path in self._lost or not is_copied:
                return leaf
            # A deepcopy fails for a tensor that is part of a graph.
            if isinstance(leaf, Tensor):
                copied = copy_of(leaf)
                if copied is None:
                    self._lost.add(path)
                return leaf if copied is None else copied
            try:
                return copy.deepcopy(leaf)
            except Exception:
                # A user's object may raise anything. Its place is skipped
                # from now on, because a deepcopy that fails may take long.
                self._lost.add(path)
                return leaf

        data = walk(batch, keep_leaf)
        return KeptBatch(data, not self._lost)

    def compare(self, batch: object, kept: KeptBatch) -> None:
        """Learn which parts of a batch training has changed.

        Does nothing after the first iterations; in them it syncs the device.
        """
        if self._num_compared >= NUM_COMPARED:
            return
        self._num_compared += 1
        before: Dict[Path, object] = {}

        def remember(path: Path, leaf: object) -> object:
            before[path] = leaf
            return leaf

        walk(kept.data, remember)

        def compare_leaf(path: Path, leaf: object) -> object:
            # A leaf that training added was not there to be changed: a copy
            # of the containers is enough to leave it out of a replay.
            if path not in before or general(path) in self._lost:
                return leaf
            try:
                if not same(before[path], leaf):
                    self._changing.add(general(path))
            except Exception:
                # A user's object may refuse to be pickled.
                self._lost.add(general(path))
            return leaf

        walk(batch, compare_leaf)


def general(path: Path) -> Path:
    """Replace indices by '*', so that all samples share a place."""
    return tuple(map(general_key, path))


def general_key(key: object) -> object:
    """Return '*' for an index, and any other key unchanged."""
    return '*' if isinstance(key, int) else key


def walk(
    value: Any, leaf: Callable[[Path, object], object], path: Path = ()
) -> Any:
    """Copy the containers of a batch and replace its leaves.

    Args:
        value: The batch, or a part of it.
        leaf: A function of path and leaf that returns the new leaf.
        path: The path of ``value`` in the batch.
    """
    if isinstance(value, BaseDataElement):
        new = copy.copy(value)
        # The attributes include the sets of field names, which a new field
        # changes (MMEngine 0.10.7, structures/base_data_element.py#L212).
        for key, item in vars(value).items():
            vars(new)[key] = walk(item, leaf, (*path, key))
        return new
    # Exact types: a subclass may be made in a way of its own, and is a leaf.
    if type(value) is dict:
        return {k: walk(v, leaf, (*path, k)) for k, v in value.items()}
    is_named_tuple = isinstance(value, tuple) and hasattr(value, '_fields')
    if is_named_tuple or type(value) in (list, tuple):
        parts = [walk(v, leaf, (*path, i)) for i, v in enumerate(value)]
        return type(value)(*parts) if is_named_tuple else type(value)(parts)
    # The members of a set are hashable, and so constant as a rule.
    if type(value) is set:
        return set(value)
    return value if isinstance(value, CONSTANT) else leaf(path, value)


def same(left: object, right: Any) -> bool:
    """Whether two leaves are equal bit for bit, so that NaN equals NaN."""
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return pickle.dumps(left) == pickle.dumps(right)
    if not (is_ordinary(left) and is_ordinary(right)):
        # Such tensors have no bits to compare, and some have no shape.
        return type(left) is type(right) and torch.equal(left, right)
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    # An empty tensor made of a NumPy array may have a stride of 0, with which
    # view() as bytes fails.
    if left.numel() == 0:
        return True
    return torch.equal(bytes_of(left), bytes_of(right))


def bytes_of(tensor: Tensor) -> Tensor:
    """Return the bytes of an ordinary tensor on the host."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    return tensor.contiguous().flatten().view(torch.uint8)
