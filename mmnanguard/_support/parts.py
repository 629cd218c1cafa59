"""The parts of containers and objects in a batch, for every walk over one.

A batch may hold dicts, lists, named tuples, MMEngine's data elements, and
objects such as mmdet's boxes or a dataclass that keep tensors in attributes.
The checks of inputs, autopsies and audits of a dataset take the parts of all
of these from here, so that none of them overlooks what another one sees.
"""

import copy
from types import MemberDescriptorType
from typing import Any, Dict, Iterator, List, Mapping, Tuple

__all__ = ['Trail', 'is_element', 'parts_of', 'with_parts']

# A deeper part is not reached. Batches of mm projects are 6 levels deep.
MAX_DEPTH = 16
# Types whose objects have no parts.
SIMPLE = (str, bytes, bytearray, int, float, complex, type(None), type)
# The methods that mark an array or a tensor, which is a leaf.
ARRAY_MARKS = ('untyped_storage', '__array_interface__')

# The ids of the values that contain the present one.
Trail = Tuple[int, ...]
Part = Tuple[Any, object]


def parts_of(value: object, trail: Trail = ()) -> List[Part]:
    """Return the parts of a value, each with its key, index or name.

    Attributes are read where they are stored, so that no property runs. The
    data fields of MMEngine's elements are an exception: there the property
    gives the name that users know.

    Args:
        value: Any value.
        trail: The ids of the values around it. A value within itself and a
            value that is too deep have no parts.

    Returns:
        An empty list for a leaf, such as a number, text, array or tensor.
    """
    if isinstance(value, SIMPLE) or is_array(value):
        return []
    if id(value) in trail or len(trail) >= MAX_DEPTH:
        return []
    if isinstance(value, Mapping):
        return list(value.items())
    if is_element(value):
        # The names are in a set, whose order differs between processes.
        return sorted(value.items())  # type: ignore[attr-defined]
    if isinstance(value, (list, tuple)):
        return list(zip(getattr(value, '_fields', range(len(value))), value))
    # A function, class or module is code, not data.
    if callable(value):
        return []
    return list(stored_attributes(value))


def with_parts(value: Any, changes: Mapping[Any, object]) -> Any:
    """Return a copy of a value with some of its parts replaced.

    Args:
        value: A value with parts; never changed.
        changes: The new parts, by the keys of :func:`parts_of`. Without any,
            the value itself is returned.
    """
    if not changes:
        return value
    if isinstance(value, (list, tuple)):
        items = [changes.get(key, item) for key, item in parts_of(value)]
        make: Any = type(value)
        # A named tuple takes its fields as separate arguments.
        if hasattr(value, '_fields'):
            return make(*items)
        if isinstance(value, tuple):
            return make(items)
        # A copy, because the constructor of a subclass may take other
        # arguments.
        new: Any = copy.copy(value)
        new[:] = items
        return new
    new = copy.copy(value)
    if isinstance(value, Mapping):
        new.update(changes)
    elif is_element(value):
        new.set_data(changes)
    else:
        for name, item in changes.items():
            # Past the object's own __setattr__, which a frozen dataclass has.
            object.__setattr__(new, name, item)
    return new


def is_array(value: object) -> bool:
    """Whether a value is a tensor or an array."""
    kind = type(value)
    return any(hasattr(kind, mark) for mark in ARRAY_MARKS)


def is_element(value: object) -> bool:
    """Whether a value is one of MMEngine's data elements."""
    kind = type(value)
    return hasattr(kind, 'metainfo_items') and hasattr(kind, 'set_data')


def stored_attributes(value: object) -> Iterator[Part]:
    """Yield the attributes of an object as they are stored, by name."""
    attributes: Dict[str, object] = {}
    for kind in type(value).__mro__:
        for name, descriptor in vars(kind).items():
            # An attribute of __slots__.
            if isinstance(descriptor, MemberDescriptorType):
                try:
                    attributes[name] = descriptor.__get__(value)
                except AttributeError:  # not set yet
                    continue
    stored = getattr(value, '__dict__', None)
    if isinstance(stored, dict):
        attributes.update(stored)
    yield from attributes.items()
