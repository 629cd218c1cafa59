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

PATH = re.compile(r'[A-Za-z_]\w*(\.\w+)*')
MAX_NAMED = 40  # keys in a message
# The attributes with the numbers of mmdet's boxes, mmdet3d's points (tensor)
# and mmdet's masks (masks).
INNER = ('tensor', 'masks')


# The output of a pipeline, by key.
Sample = Mapping[str, object]
HOLDERS = (Mapping, list, tuple, BaseDataElement)


class UnreadableField(GuardConfigError):
    """A key or a check of the config does not fit the sample."""


class MissingKey(UnreadableField):
    """The sample has no such key, or None there."""


def check_key(key: str) -> None:
    """Refuse a value that is neither a key nor an expression.

    Raises:
        GuardConfigError: If it is neither.
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
        # The name itself may have dots, as has 'data.img'.
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
    names = (name_sample(item) for item in inner)
    return next((name for name in names if name is not None), None)


def walk(value: object, path: str) -> Iterator[Tuple[str, np.ndarray]]:
    """Yield all arrays, tensors, numbers and nested lists of numbers."""
    array = as_array(value)
    if array is not None:
        yield path, array
        return
    for name, item in members(value):
        yield from walk(item, f'{path}.{name}' if path else str(name))


def members(value: object) -> List[Tuple[object, object]]:
    """Return the parts of a value, with their keys, indices or names."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, BaseDataElement):
        return list(value.all_items())
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    names = [name for name in INNER if is_numeric(getattr(value, name, None))]
    return [(name, getattr(value, name)) for name in names]


def is_numeric(value: object) -> bool:
    """Whether a value is a tensor or an array."""
    return isinstance(value, (Tensor, np.ndarray))


def as_array(value: object) -> Optional[np.ndarray]:
    """Return a value as an array; None if it is not numbers alone."""
    array: object = value
    if isinstance(value, Tensor):
        array = tensor_to_array(value)
    elif isinstance(value, (list, tuple)):
        if not is_nested_numbers(value):
            return None
        try:
            array = np.asarray(value)
        except ValueError:  # rows of several lengths
            return None
    elif isinstance(value, (bool, int, float, complex, np.generic)):
        array = np.asarray(value)
    if isinstance(array, np.ndarray) and array.dtype.kind in 'biufc':
        return array
    return None


def tensor_to_array(tensor: Tensor) -> np.ndarray:
    """Return the values of a tensor on any device and of any layout."""
    tensor = tensor.detach().cpu().resolve_conj()
    if tensor.is_sparse:
        tensor = tensor.to_dense()
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
    next_path = f'{path}.{head}' if path else head
    if isinstance(value, Mapping) and head in value:
        yield from follow_path(value[head], rest, next_path, sample)
    elif isinstance(value, (list, tuple)):
        if not head.isdigit():
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
    more = f' and {len(keys) - MAX_NAMED} more' if keys[MAX_NAMED:] else ''
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
        inner = f'{path}.{name}' if path else str(name)
        yield inner
        # A list may be long, and its items have the same keys.
        if not isinstance(item, (list, tuple)):
            yield from keys_of(item, inner, depth - 1)


@lru_cache(maxsize=None)
def compiled(expression: str) -> Tuple[CodeType, FrozenSet[str]]:
    """Compile an expression; return its code and the names in it.

    Raises:
        GuardConfigError: If it is no Python.
    """
    try:
        tree = ast.parse(expression, mode='eval')
    except SyntaxError as error:
        raise GuardConfigError(
            f'{expression!r} is neither a key nor an expression: {error.msg}.'
        ) from None
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    names = frozenset(node.id for node in nodes)
    return compile(tree, expression, 'eval'), names


def evaluate(expression: str, sample: Sample) -> object:
    """Return the value of an expression over the sample's keys.

    It may execute anything: it is part of a config or a command line, which
    the user trusts already.

    Raises:
        MissingKey: If the sample does not have a name or an attribute.
    """
    code, names = compiled(expression)
    namespace: Dict[str, object] = dict(np=np, torch=torch)
    for name in names & set(map(str, sample)):
        array = as_array(sample[name])
        namespace[name] = sample[name] if array is None else array
    try:
        value: object = eval(code, namespace)
        return value
    except NameError as error:
        unknown = re.findall(r"'(\w+)'", str(error))
        raise missing((unknown or [expression])[0], sample) from None
    except AttributeError as error:
        raise MissingKey(f"'{expression}': {error}.") from error
