"""Tensors that a model keeps in plain attributes, from batch to batch.

Nothing puts them back after a rejected update, unlike parameters and buffers.
"""

from typing import Dict

from torch import nn

from ..update.blame import plain_name
from .element_facts import floats
from .storage_views import key_of

__all__ = ['name_attributes']

# What torch.nn.Module itself keeps in a module, such as its parameters.
OWN_ATTRIBUTES = frozenset(vars(nn.Module()))


def name_attributes(model: nn.Module) -> Dict[int, str]:
    """Return the names of tensors in plain attributes of modules, by storage.

    Attributes may also be lists, tuples and dicts of tensors.
    """
    names: Dict[int, str] = {}
    for module_name, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in OWN_ATTRIBUTES:
                name = plain_name(f'{module_name}.{key}'.lstrip('.'))
                for tensor in floats(value):
                    names.setdefault(key_of(tensor), name)
    return names
