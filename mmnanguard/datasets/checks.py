"""What a sample is held to: a check tells what is wrong with it, or None."""

import math
from dataclasses import dataclass
from typing import Any, Iterator, List, Mapping, Optional, Sequence, Union

import numpy as np

from mmnanguard.core import GuardConfigError
from mmnanguard.core.checks import check_value, is_number
from mmnanguard.registry import CHECKS

from .fields import MissingKey, UnreadableField, check_key, numbers

__all__ = ['Finite', 'NotDegenerate', 'NotEmpty', 'Range']

Keys = Union[str, Sequence[str], None]
KINDS = ('xyxy', 'xywh', 'points')


@dataclass(frozen=True)
class FieldCheck:
    """Looks at the numbers under its keys, and tells of each array at most
    its first bad element.

    Args:
        key: See :func:`~mmnanguard.datasets.fields.numbers`; or several.
        allow_missing: A sample without the key passes; else it is an error,
            as the key may be misspelt.

    Raises:
        GuardConfigError: For an argument that is not allowed; when called,
            for a sample without the key.
    """

    key: Keys = None
    allow_missing: bool = False

    def __post_init__(self) -> None:
        is_list = isinstance(self.key, (list, tuple)) and bool(self.key)
        is_right = self.key is None or isinstance(self.key, str) or is_list
        where = f'{type(self).__name__}.key'
        check_value(
            is_right, where, self.key, "a key such as 'img', or several"
        )
        for key in self.keys():
            if key is not None:
                check_key(key)

    def keys(self) -> Sequence[Optional[str]]:
        is_one = self.key is None or isinstance(self.key, str)
        return [self.key] if is_one else self.key  # type: ignore

    def __call__(self, sample: Mapping[str, Any]) -> Optional[str]:
        told: List[str] = []
        for key in self.keys():
            try:
                told += filter(None, self.look_under(key, sample))
            except MissingKey:
                if not self.allow_missing:
                    raise
        return '; '.join(told) or None

    def look_under(
        self, key: Optional[str], sample: Mapping[str, Any]
    ) -> Iterator[Optional[str]]:
        try:
            for path, array in numbers(sample, key):
                yield self.look(path, array)
        except GuardConfigError:
            raise
        except Exception as error:  # an expression: whatever it raises
            yield f"'{key}' fails: {type(error).__name__}: {error}"

    def look(self, path: str, array: np.ndarray) -> Optional[str]:
        raise NotImplementedError


@CHECKS.register_module()
class Finite(FieldCheck):
    """No NaN and no Inf; without a key, in anything of the sample."""

    def look(self, path: str, array: np.ndarray) -> Optional[str]:
        if array.dtype.kind not in 'fc':
            return None
        bad = ~np.isfinite(array)
        return tell_first(path, array, bad, 'it must be finite')


@CHECKS.register_module()
@dataclass(frozen=True)
class Range(FieldCheck):
    """Each element from ``min`` to ``max``, both included; NaN is outside.

    Args:
        min: Lowest allowed value; None means no bound.
        max: Highest allowed value; None means no bound.
    """

    min: Optional[float] = None
    max: Optional[float] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_needed(self)
        bounds = (self.min, self.max)
        for name, bound in zip(('min', 'max'), bounds):
            is_right = bound is None or (is_number(bound) and bound == bound)
            check_value(is_right, f'Range.{name}', bound, 'a number or None')
        check_value(bounds != (None, None), 'Range', bounds, 'one bound')
        if self.min is not None and self.max is not None:
            is_right = self.min <= self.max
            check_value(is_right, 'Range.min', self.min, 'at most max')

    def look(self, path: str, array: np.ndarray) -> Optional[str]:
        good = np.ones(array.shape, bool)
        if self.min is not None:
            good &= array >= within_type(self.min, array.dtype)
        if self.max is not None:
            good &= array <= within_type(self.max, array.dtype)
        if self.max is None:
            rule = f'it must be {self.min} or more'
        elif self.min is None:
            rule = f'it must be {self.max} or less'
        else:
            rule = f'it must be from {self.min} to {self.max}'
        return tell_first(path, array, ~good, rule)


@CHECKS.register_module()
@dataclass(frozen=True)
class NotDegenerate(FieldCheck):
    """Boxes that have an area, points that do not coincide; none at all is
    fine. NaN is degenerate.

    Args:
        kind: 'xyxy' and 'xywh' (also 'cxcywh', and rotated ones) for boxes,
            of shape (..., 4 or more); 'points' for sets of points, of shape
            (..., points, coordinates).
        min_size: Width and height of a box must be above it; of points, the
            longest side of the box around them.
    """

    kind: str = 'xyxy'
    min_size: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_needed(self)
        allowed = f'one of {KINDS}'
        check_value(
            self.kind in KINDS, 'NotDegenerate.kind', self.kind, allowed
        )
        is_right = is_number(self.min_size) and self.min_size >= 0
        where = 'NotDegenerate.min_size'
        check_value(is_right, where, self.min_size, 'a number of 0 or more')

    def look(self, path: str, array: np.ndarray) -> Optional[str]:
        if array.size == 0:
            return None
        least = (1, 1) if self.kind == 'points' else (0, 4)
        if array.ndim <= least[0] or array.shape[-1] < least[1]:
            raise UnreadableField(
                f"'{path}' has shape {array.shape}: NotDegenerate of kind "
                f"'{self.kind}' cannot read it. Allowed kinds: {KINDS}."
            )
        array = array.astype(np.float64)  # unsigned numbers wrap around
        if self.kind == 'points':
            with np.errstate(invalid='ignore'):
                size = np.ptp(array, axis=-2).max(axis=-1)
            rule = f'its points must be more than {self.min_size} apart'
        else:
            start = array[..., :2] if self.kind == 'xyxy' else 0.0
            with np.errstate(invalid='ignore'):
                size = (array[..., 2:4] - start).min(axis=-1)
            rule = f'its width and height must be above {self.min_size}'
        return tell_first(path, array, ~(size > self.min_size), rule)


@CHECKS.register_module()
class NotEmpty(FieldCheck):
    """An element at least, and one that is not 0: boxes, masks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_needed(self)

    def look(self, path: str, array: np.ndarray) -> Optional[str]:
        if array.any():
            return None
        what = f'0 in all of its {array.size} elements'
        return f'{path} is {what if array.size else "empty"}'


def within_type(bound: float, dtype: np.dtype) -> float:
    """A finite bound beyond a type's numbers would become Inf beside them,
    and let Inf pass.
    """
    if dtype.kind != 'f' or math.isinf(bound):
        return bound
    limit = float(np.finfo(dtype).max)
    return min(max(bound, -limit), limit)


def check_needed(check: FieldCheck) -> None:
    name = type(check).__name__
    allowed = "a key such as 'gt_bboxes', or several"
    check_value(bool(check.key), f'{name}.key', check.key, allowed)


def tell_first(
    path: str, array: np.ndarray, bad: np.ndarray, rule: str
) -> Optional[str]:
    """Where, its value, how many more, what is allowed; None if none is bad.

    Args:
        path: Of the array.
        array: Of shape (..., any); ``bad`` has its first dimensions.
        bad: Which elements, boxes or sets of points are.
        rule: What all must be.
    """
    count = int(bad.sum())
    if not count:
        return None
    first = tuple(np.argwhere(bad)[0].tolist())
    where = f'{path}{list(first)}' if first else path
    value = np.array2string(array[first], precision=6, separator=', ')
    value = ' '.join(value.split())[:120]
    more = f' (and {count - 1} more of {bad.size})' if count > 1 else ''
    return f'{where} is {value}{more}: {rule}'
