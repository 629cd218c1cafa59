"""Batches as tensors and builtins, which load with ``weights_only=True``."""

import sys
from typing import Any, Dict, List, Tuple

import numpy as np
import torch
from mmengine.structures import BaseDataElement

__all__ = ['from_plain', 'to_plain']

ELEMENT, ARRAY, LOST = '__element__', '__array__', '__lost__'


def to_plain(value: Any) -> Tuple[Any, List[str]]:
    """Encode a batch.

    Returns:
        The code, and the types of what could not be encoded; those parts
        are kept as their ``repr``.
    """
    lost: List[str] = []

    def encode(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return item.detach().cpu()
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
        if isinstance(item, (list, tuple)):
            parts = [encode(part) for part in item]
            return parts if isinstance(item, list) else tuple(parts)
        lost.append(f'{type(item).__module__}.{type(item).__qualname__}')
        return {LOST: repr(item)[:1000]}

    return encode(value), sorted(set(lost))


def from_plain(code: Any) -> Any:
    """Decode what :func:`to_plain` gave. Import the packages whose data
    elements it holds before: those of others come as the base class.
    """
    if isinstance(code, dict):
        if ARRAY in code:
            return code[ARRAY].numpy()
        if LOST in code:
            return code[LOST]
        if ELEMENT in code:
            return _element(code)
        return {key: from_plain(part) for key, part in code.items()}
    if isinstance(code, (list, tuple)):
        return type(code)(from_plain(part) for part in code)
    return code


def _element(code: Dict[str, Any]) -> BaseDataElement:
    """Of its own class where that is known, else of the base class: a file
    is no reason to import whatever it names.
    """
    module, name = code[ELEMENT].split(':')
    kind = getattr(sys.modules.get(module), name, BaseDataElement)
    if not (isinstance(kind, type) and issubclass(kind, BaseDataElement)):
        kind = BaseDataElement
    element = kind(metainfo=from_plain(code['metainfo']))
    element.set_data(from_plain(code['data']))
    return element
