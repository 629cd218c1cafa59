"""The numbers of a sample, by key."""

import ast
import re
from functools import lru_cache
from types import CodeType
from typing import (
    Any,
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
    'UnreadableField',
    'check_key',
    'name_sample',
    'numbers',
]

PATH = re.compile(r'[A-Za-z_]\w*(\.\w+)*')
MAX_TOLD = 40  # keys in a message
# What mmdet's boxes, mmdet3d's points and mmdet's masks keep theirs in.
INNER = ('tensor', 'masks')


HOLDERS = (Mapping, list, tuple, BaseDataElement)


class UnreadableField(GuardConfigError):
    """A key or a check of the config does not fit the sample."""


class MissingKey(UnreadableField):
    """The sample has no such key, or None there."""


def check_key(key: str) -> None:
    """Refuse what is neither a key nor an expression.

    Raises:
        GuardConfigError: If it is none.
    """
    if not isinstance(key, str):
        raise GuardConfigError(f'key {key!r} must be a string.')
    if not PATH.fullmatch(key):
        compiled(key)


def numbers(
    sample: Mapping[str, Any], key: Optional[str]
) -> Iterator[Tuple[str, np.ndarray]]:
    """Each array of numbers that stands under a key, and its own path.

    Args:
        sample: What a pipeline hands on.
        key: A path through dicts, lists and attributes, such as
            'data_samples.gt_instances.bboxes'; a list is gone through where
            no index is given. Or an expression over the sample's keys, such as
            'np.ptp(img)'; they are arrays there where they are numbers, and
            ``np`` and ``torch`` are known. None means all there is.

    Raises:
        MissingKey: If the sample has no such key.
        UnreadableField: If there is something else than numbers.
    """
    if key is None:
        yield from walk(sample, '')
        return
    if key in sample:
        found = [(key, sample[key])]
    elif PATH.fullmatch(key):
        found = list(find(sample, key.split('.'), '', sample))
    else:
        found = [(key, evaluate(key, sample))]
    for path, value in found:
        if value is None:
            raise missing(path, sample)
        arrays = list(walk(value, path))
        if not arrays and not isinstance(value, HOLDERS):
            raise UnreadableField(
                f"'{path}' holds no numbers, it is a {type(value).__name__}."
            )
        yield from arrays


def name_sample(sample: Any) -> Optional[str]:
    """From its own keys, or else from its first annotation structure."""
    if isinstance(sample, BaseDataElement):
        return sample_name(sample.metainfo)
    inner: Sequence[Any] = ()
    if isinstance(sample, Mapping):
        name = sample_name(sample)
        if name is not None:
            return name
        inner = list(sample.values())
    elif isinstance(sample, (list, tuple)):
        inner = sample
    names = (name_sample(item) for item in inner)
    return next((name for name in names if name is not None), None)


def walk(value: Any, path: str) -> Iterator[Tuple[str, np.ndarray]]:
    """All arrays, tensors, numbers and nested lists of numbers."""
    array = as_array(value)
    if array is not None:
        yield path, array
        return
    for name, item in members(value):
        yield from walk(item, f'{path}.{name}' if path else str(name))


def members(value: Any) -> List[Tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, BaseDataElement):
        return list(value.all_items())
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    names = [name for name in INNER if is_numeric(getattr(value, name, None))]
    return [(name, getattr(value, name)) for name in names]


def is_numeric(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def as_array(value: Any) -> Optional[np.ndarray]:
    """None if it is not numbers alone."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().resolve_conj()
        value = value.to_dense() if value.is_sparse else value
        try:
            value = value.numpy()
        except TypeError:  # numpy has no bfloat16
            value = value.float().numpy()
    elif isinstance(value, (list, tuple)):
        if not is_nested_numbers(value):
            return None
        try:
            value = np.asarray(value)
        except ValueError:  # rows of several lengths
            return None
    elif isinstance(value, (bool, int, float, complex, np.generic)):
        value = np.asarray(value)
    is_array = isinstance(value, np.ndarray) and value.dtype.kind in 'biufc'
    return value if is_array else None


def is_nested_numbers(value: Any) -> bool:
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return isinstance(value, (int, float, np.number, list, tuple))


def find(
    value: Any, parts: List[str], path: str, sample: Mapping[str, Any]
) -> Iterator[Tuple[str, Any]]:
    """What a path leads to; to several through a list."""
    if not parts:
        yield path, value
        return
    head, rest = parts[0], parts[1:]
    there = f'{path}.{head}' if path else head
    if isinstance(value, Mapping) and head in value:
        yield from find(value[head], rest, there, sample)
    elif isinstance(value, (list, tuple)):
        if not head.isdigit():
            for index, item in enumerate(value):
                yield from find(item, parts, f'{path}.{index}', sample)
        elif int(head) < len(value):
            yield from find(value[int(head)], rest, there, sample)
        else:
            raise missing(there, sample)
    elif not isinstance(value, Mapping) and hasattr(value, head):
        yield from find(getattr(value, head), rest, there, sample)
    else:
        raise missing(there, sample)


def missing(key: str, sample: Mapping[str, Any]) -> MissingKey:
    keys = list(keys_of(sample, '', depth=3))
    more = f' and {len(keys) - MAX_TOLD} more' if keys[MAX_TOLD:] else ''
    return MissingKey(
        f"the sample has no '{key}': {did_you_mean(key, keys)}Here it has "
        f'{", ".join(keys[:MAX_TOLD])}{more}. Look at another place of the '
        'pipeline, or, if some samples have none, set allow_missing=True.'
    )


def keys_of(value: Any, path: str, depth: int) -> Iterator[str]:
    for name, item in members(value) if depth else ():
        inner = f'{path}.{name}' if path else str(name)
        yield inner
        if not isinstance(item, (list, tuple)):
            yield from keys_of(item, inner, depth - 1)


@lru_cache(maxsize=None)
def compiled(expression: str) -> Tuple[CodeType, FrozenSet[str]]:
    """An expression's code and the names in it."""
    try:
        tree = ast.parse(expression, mode='eval')
    except SyntaxError as error:
        raise GuardConfigError(
            f'{expression!r} is neither a key nor an expression: {error.msg}.'
        ) from None
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    names = frozenset(node.id for node in nodes)
    return compile(tree, expression, 'eval'), names


def evaluate(expression: str, sample: Mapping[str, Any]) -> Any:
    """Of a config or a command line, which run whatever they say anyway."""
    code, names = compiled(expression)
    namespace: Dict[str, Any] = dict(np=np, torch=torch)
    for name in names & set(map(str, sample)):
        array = as_array(sample[name])
        namespace[name] = sample[name] if array is None else array
    try:
        return eval(code, namespace)
    except NameError as error:
        unknown = re.findall(r"'(\w+)'", str(error))
        raise missing((unknown or [expression])[0], sample) from None
    except AttributeError as error:
        raise MissingKey(f"'{expression}': {error}.") from error
