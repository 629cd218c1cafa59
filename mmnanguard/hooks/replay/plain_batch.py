"""Batches as tensors and builtins, which load with ``weights_only=True``.

Other objects, such as mmdet's boxes, are pickled into bytes, which
:func:`from_plain` opens only if the caller allows it.
"""

import io
import pickle
import sys
from functools import partial
from typing import Any, Dict, List, Set, Tuple

import numpy as np
import torch
from mmengine.structures import BaseDataElement

from mmnanguard.numerics.base.tensor_kinds import is_ordinary

__all__ = ['can_save', 'from_plain', 'to_plain']

# Keys that mark a dict as the code of another object. They are part of the
# file format: a change needs another ``batch_dump.SCHEMA``.
ELEMENT, ARRAY = '__element__', '__array__'
PICKLED, LOST = '__pickled__', '__lost__'


def to_plain(value: object) -> Tuple[Any, List[str], List[str]]:
    """Encode a batch.

    Returns:
        The code, the types of the objects that had to be pickled, and the
        types of those that cannot be pickled: the code has only their
        ``repr``.
    """
    encoder = Encoder()
    code = encoder.encode(value)
    return code, sorted(encoder.pickled), sorted(encoder.lost)


class Encoder:
    """Encodes a batch and notes the types that are not plain.

    Attributes:
        pickled: The types of the objects that had to be pickled.
        lost: The types of the objects that are kept as text only.
    """

    def __init__(self) -> None:
        self.pickled: Set[str] = set()
        self.lost: Set[str] = set()

    def encode(self, item: object) -> object:
        """Return the code of an object."""
        if isinstance(item, torch.Tensor):
            return self._encode_tensor(item)
        # An array of objects is no tensor, and is pickled.
        if isinstance(item, np.ndarray) and item.dtype != object:
            return {ARRAY: torch.from_numpy(np.ascontiguousarray(item))}
        # Checked before the builtins, because np.float64 is a float as well.
        if isinstance(item, np.generic):
            return item.item()
        if item is None or isinstance(item, (bool, int, float, str, bytes)):
            return item
        if isinstance(item, BaseDataElement):
            return {
                ELEMENT: f'{type(item).__module__}:{type(item).__qualname__}',
                'metainfo': self.encode(dict(item.metainfo_items())),
                'data': self.encode(dict(item.items())),
            }
        if isinstance(item, dict):
            return {self.encode(k): self.encode(v) for k, v in item.items()}
        # A subclass, such as a named tuple, is pickled to keep its type.
        if type(item) is list:
            return list(map(self.encode, item))
        if type(item) is tuple:
            return tuple(map(self.encode, item))
        return self._encode_object(item)

    def _encode_tensor(self, item: torch.Tensor) -> object:
        """Return a tensor on the host, or its text if it cannot be saved."""
        if not can_save(item):
            return self._encode_object(item)
        item = item.detach().cpu()
        return without_base(item) if is_ordinary(item) else item

    def _encode_object(self, item: object) -> Dict[str, object]:
        """Return the pickle of an object, or its text if that fails."""
        name = f'{type(item).__module__}.{type(item).__qualname__}'
        try:
            data = pickle.dumps(item)
        except Exception:
            # A user's object may raise anything. The start of its text helps
            # to recognise it, and a long one would bloat the file.
            self.lost.add(name)
            return {LOST: repr(item)[:1000], 'type': name}
        self.pickled.add(name)
        return {PICKLED: data, 'type': name}


def can_save(tensor: torch.Tensor) -> bool:
    """Whether a file can hold a tensor and loads with ``weights_only``."""
    if is_ordinary(tensor):
        return True
    file = io.BytesIO()
    try:
        # A subclass may raise anything.
        torch.save(tensor.detach().cpu(), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:
        return False
    return True


def without_base(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor with a storage that holds nothing else.

    ``torch.save`` writes whole storages, also for a view of a few elements.
    """
    num_bytes = tensor.numel() * tensor.element_size()
    if tensor.untyped_storage().nbytes() > num_bytes:
        return tensor.clone()
    return tensor


def from_plain(code: object, allow_pickle: bool = False) -> Any:
    """Decode the result of :func:`to_plain`.

    A data element of a class whose module is not imported becomes a
    ``BaseDataElement``.

    Args:
        code: The code of a batch, or of a part of it.
        allow_pickle: Whether to open pickled objects too, which runs any code
            that the file holds.

    Raises:
        ValueError: If an object is pickled and that is not allowed, or if it
            is lost.
    """
    decode = partial(from_plain, allow_pickle=allow_pickle)
    if isinstance(code, dict):
        if ARRAY in code:
            return code[ARRAY].numpy()
        if PICKLED in code:
            if not allow_pickle:
                raise ValueError(f'holds a pickled {code["type"]}')
            return pickle.loads(code[PICKLED])
        if LOST in code:
            raise ValueError(f'holds no {code["type"]}: {code[LOST]}')
        if ELEMENT in code:
            return _element(code, allow_pickle)
        return dict(zip(code, map(decode, code.values())))
    if isinstance(code, (list, tuple)):
        return type(code)(map(decode, code))
    return code


def _element(code: Dict[str, Any], allow_pickle: bool) -> BaseDataElement:
    """Rebuild a data element.

    Its original class is used only if it is already imported: a dump must
    never trigger imports.
    """
    module, name = code[ELEMENT].split(':')
    kind = getattr(sys.modules.get(module), name, BaseDataElement)
    # The file may name any object of the module, such as a function.
    if not (isinstance(kind, type) and issubclass(kind, BaseDataElement)):
        kind = BaseDataElement
    element = kind(metainfo=from_plain(code['metainfo'], allow_pickle))
    element.set_data(from_plain(code['data'], allow_pickle))
    return element
