"""The numbers of a sample, by a key or an expression."""

import ast
import re
from functools import lru_cache
from types import CodeType
from typing import (
    Dict,
    FrozenSet,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
)

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from mmnanguard._support.parts import Trail, parts_of
from mmnanguard._support.sample_name import sample_name
from mmnanguard.core import GuardConfigError
from mmnanguard.core.checks import did_you_mean

__all__ = [
    'MissingKey',
    'Sample',
    'UnreadableField',
    'check_key',
    'name_sample',
    'numbers',
]

# A key that is no path is an expression.
PATH = re.compile(r'[A-Za-z_]\w*(\.\w+)*')
MAX_NAMED = 40  # keys in a message

# The output of a pipeline, by key.
Sample = Mapping[str, object]
# Values that may be empty, so that finding no numbers in them is no mistake.
HOLDERS = (Mapping, list, tuple, BaseDataElement)


class UnreadableField(GuardConfigError):
    """A key or a check of the config does not fit the sample."""


class MissingKey(UnreadableField):
    """The sample has no such key, or None there."""


def check_key(key: str) -> None:
    """Refuse a value that is neither a key nor an expression.

    Raises:
        GuardConfigError: If the value is neither of the two.
    """
    if not isinstance(key, str):
        raise GuardConfigError(f'key {key!r} must be a string.')
    if not PATH.fullmatch(key):
        compiled(key)


def numbers(
    sample: Sample, key: Optional[str]
) -> Iterator[Tuple[str, np.ndarray]]:
    """Yield all arrays of numbers under a key, each with its full path.

    Args:
        sample: The output of a pipeline.
        key: A path through dicts, lists and attributes, such as
            'data_samples.gt_instances.bboxes'; without an index it leads to
            all items of a list. Or an expression over the sample's keys,
            such as 'np.ptp(img)', in which ``np`` and ``torch`` are known
            and numbers of the sample are arrays. None means the whole
            sample.

    Raises:
        MissingKey: If the sample has no such key.
        UnreadableField: If the value under the key is no number.
    """
    if key is None:
        yield from walk(sample, '')
        return
    if key in sample:
        # A key of the sample may itself have dots, such as 'data.img'.
        values = [(key, sample[key])]
    elif PATH.fullmatch(key):
        values = list(follow_path(sample, key.split('.'), '', sample))
    else:
        values = [(key, evaluate(key, sample))]
    for path, value in values:
        if value is None:
            raise missing(path, sample)
        arrays = list(walk(value, path))
        if not arrays and not isinstance(value, HOLDERS):
            raise UnreadableField(
                f"'{path}' holds no numbers, it is a {type(value).__name__}."
            )
        yield from arrays


def name_sample(sample: object) -> Optional[str]:
    """Return a sample's name: from its keys, or else from its annotations."""
    if isinstance(sample, BaseDataElement):
        return sample_name(sample.metainfo)
    inner: Sequence[object] = ()
    if isinstance(sample, Mapping):
        name = sample_name(sample)
        if name is not None:
            return name
        inner = list(sample.values())
    elif isinstance(sample, (list, tuple)):
        inner = sample
    for item in inner:
        name = name_sample(item)
        if name is not None:
            return name
    return None


def walk(
    value: object, path: str, trail: Trail = ()
) -> Iterator[Tuple[str, np.ndarray]]:
    """Yield all arrays, tensors, numbers and nested lists of numbers."""
    array = as_array(value)
    if array is not None:
        yield path, array
        return
    for name, item in members(value, trail):
        yield from walk(item, join_path(path, name), (*trail, id(value)))


def join_path(path: str, name: object) -> str:
    """Return the path of a member; the path of the sample itself is ''."""
    if not path:
        return str(name)
    return f'{path}.{name}'


def members(
    value: object, trail: Trail = ()
) -> Sequence[Tuple[object, object]]:
    """Return the parts of a value, with their keys, indices or names.

    Args:
        value: Any value.
        trail: The ids of the values around it.
    """
    if isinstance(value, BaseDataElement):
        # Fields and metainfo: a check may concern img_shape or scale_factor.
        return list(value.all_items())
    return parts_of(value, trail)


def as_array(value: object) -> Optional[np.ndarray]:
    """Return a value as an array; None if it is not numbers alone."""
    array: object = value
    if isinstance(value, Tensor):
        try:
            array = tensor_to_array(value)
        except Exception:
            # A quantized tensor or a subclass: its numbers cannot be read.
            return None
    elif isinstance(value, (list, tuple)):
        # Converting a list of dicts or of images would take long, and numpy
        # before 1.24 made an array of objects of it.
        if not is_nested_numbers(value):
            return None
        try:
            array = np.asarray(value)
        except ValueError:  # rows of several lengths
            return None
    elif isinstance(value, (bool, int, float, complex, np.generic)):
        array = np.asarray(value)
    # Booleans, integers, floats and complex numbers; no texts, no objects.
    if isinstance(array, np.ndarray) and array.dtype.kind in 'biufc':
        return array
    return None


def tensor_to_array(tensor: Tensor) -> np.ndarray:
    """Return the values of a tensor on any device and of any layout."""
    # numpy() refuses tensors with a gradient, on a GPU or conjugated lazily.
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    try:
        return tensor.numpy()
    except TypeError:  # numpy has no bfloat16
        return tensor.float().numpy()


def is_nested_numbers(value: object) -> bool:
    """Whether the first item of nested lists is a number."""
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return isinstance(value, (int, float, np.number, list, tuple))


def follow_path(
    value: object, parts: List[str], path: str, sample: Sample
) -> Iterator[Tuple[str, object]]:
    """Yield all values that a path leads to, each with its full path.

    Args:
        value: The value that has been reached.
        parts: The rest of the path.
        path: The path to ``value``.
        sample: The whole sample, for a message.

    Raises:
        MissingKey: If the path leads nowhere.
    """
    if not parts:
        yield path, value
        return
    head, rest = parts[0], parts[1:]
    next_path = join_path(path, head)
    if isinstance(value, Mapping) and head in value:
        yield from follow_path(value[head], rest, next_path, sample)
    elif isinstance(value, (list, tuple)):
        if not head.isdigit():
            # `head` names an attribute or key of all items.
            for index, item in enumerate(value):
                yield from follow_path(item, parts, f'{path}.{index}', sample)
        elif int(head) < len(value):
            yield from follow_path(value[int(head)], rest, next_path, sample)
        else:
            raise missing(next_path, sample)
    elif not isinstance(value, Mapping) and hasattr(value, head):
        yield from follow_path(getattr(value, head), rest, next_path, sample)
    else:
        raise missing(next_path, sample)


def missing(key: str, sample: Sample) -> MissingKey:
    """Return the error for a missing key, with the keys that there are."""
    keys = list(keys_of(sample, '', depth=3))
    more = ''
    if keys[MAX_NAMED:]:
        more = f' and {len(keys) - MAX_NAMED} more'
    return MissingKey(
        f"the sample has no '{key}': {did_you_mean(key, keys)}Here it has "
        f'{", ".join(keys[:MAX_NAMED])}{more}. Look at another place of the '
        'pipeline, or, if some samples have none, set allow_missing=True.'
    )


def keys_of(value: object, path: str, depth: int) -> Iterator[str]:
    """Yield the paths of a value's members, down to a depth."""
    if depth == 0:
        return
    for name, item in members(value):
        inner = join_path(path, name)
        yield inner
        # A list may be long, and its items have the same keys.
        if not isinstance(item, (list, tuple)):
            yield from keys_of(item, inner, depth - 1)


# Cached, because a pipeline evaluates the expression for each sample.
@lru_cache(maxsize=None)
def compiled(expression: str) -> Tuple[CodeType, FrozenSet[str]]:
    """Compile an expression; return its code and the names in it.

    Raises:
        GuardConfigError: If the expression is no Python.
    """
    try:
        tree = ast.parse(expression, mode='eval')
    except SyntaxError as error:
        raise GuardConfigError(
            f'{expression!r} is neither a key nor an expression: {error.msg}.'
        ) from None
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names.add(node.id)
    return compile(tree, expression, 'eval'), frozenset(names)


def evaluate(expression: str, sample: Sample) -> object:
    """Return the value of an expression over the sample's keys.

    The expression may run any code: it is part of a config or a command line,
    which the user trusts already.

    Raises:
        MissingKey: If the sample does not have a name or an attribute.
    """
    code, names = compiled(expression)
    namespace: Dict[str, object] = dict(np=np, torch=torch)
    # Only the values that are used: converting a whole sample takes long.
    for name in names & set(map(str, sample)):
        array = as_array(sample[name])
        namespace[name] = sample[name]
        if array is not None:
            namespace[name] = array
    try:
        value: object = eval(code, namespace)
        return value
    except NameError as error:
        unknown = re.findall(r"'(\w+)'", str(error))
        raise missing((unknown or [expression])[0], sample) from None
    except AttributeError as error:
        raise MissingKey(f"'{expression}': {error}.") from error
