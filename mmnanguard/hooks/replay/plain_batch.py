"""Batches as tensors and builtins, which load with ``weights_only=True``.

Other objects, such as mmdet's boxes, are pickled into bytes, which nothing
opens unasked.
"""

import pickle
import sys
from typing import Any, Dict, List, Tuple

import numpy as np
import torch
from mmengine.structures import BaseDataElement

__all__ = ['from_plain', 'to_plain']

ELEMENT, ARRAY = '__element__', '__array__'
PICKLED, LOST = '__pickled__', '__lost__'


def to_plain(value: Any) -> Tuple[Any, List[str], List[str]]:
    """Encode a batch.

    Returns:
        The code, the types of what had to be pickled, and of what cannot
        even be that: only its ``repr`` is kept.
    """
    pickled: List[str] = []
    lost: List[str] = []

    def encode(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return alone(item.detach().cpu())
        if isinstance(item, np.ndarray) and item.dtype != object:
            return {ARRAY: torch.from_numpy(np.ascontiguousarray(item))}
        if isinstance(item, np.generic):
            return item.item()
        if item is None or isinstance(item, (bool, int, float, str, bytes)):
            return item
        if isinstance(item, BaseDataElement):
            return {
                ELEMENT: f'{type(item).__module__}:{type(item).__qualname__}',
                'metainfo': encode(dict(item.metainfo_items())),
                'data': encode(dict(item.items())),
            }
        if isinstance(item, dict):
            return {encode(key): encode(part) for key, part in item.items()}
        if type(item) in (list, tuple):
            return type(item)(encode(part) for part in item)
        name = f'{type(item).__module__}.{type(item).__qualname__}'
        try:
            code = {PICKLED: pickle.dumps(item), 'type': name}
            pickled.append(name)
        except Exception:  # a user's object: whatever it raises
            code = {LOST: repr(item)[:1000], 'type': name}
            lost.append(name)
        return code

    return encode(value), sorted(set(pickled)), sorted(set(lost))


def alone(tensor: torch.Tensor) -> torch.Tensor:
    """Without the rest of a memory of which it is a view."""
    num_bytes = tensor.numel() * tensor.element_size()
    is_part = tensor.untyped_storage().nbytes() > num_bytes
    return tensor.clone() if is_part else tensor


def from_plain(code: object, allow_pickle: bool = False) -> Any:
    """Decode what :func:`to_plain` gave. Import the packages whose data
    elements it holds before: those of others come as the base class.

    Args:
        code: What it gave.
        allow_pickle: Also open what was pickled, which runs whatever code
            the file brings along.

    Raises:
        ValueError: If something was pickled and that is not allowed, or was
            lost.
    """
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
        return {k: from_plain(part, allow_pickle) for k, part in code.items()}
    if isinstance(code, (list, tuple)):
        return type(code)(from_plain(part, allow_pickle) for part in code)
    return code


def _element(code: Dict[str, Any], allow_pickle: bool) -> BaseDataElement:
    """Of its own class where that is known, else of the base class: a file
    is no reason to import whatever it names.
    """
    module, name = code[ELEMENT].split(':')
    kind = getattr(sys.modules.get(module), name, BaseDataElement)
    if not (isinstance(kind, type) and issubclass(kind, BaseDataElement)):
        kind = BaseDataElement
    element = kind(metainfo=from_plain(code['metainfo'], allow_pickle))
    element.set_data(from_plain(code['data'], allow_pickle))
    return element
