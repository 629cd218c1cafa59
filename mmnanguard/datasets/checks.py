"""Checks of a sample: each returns what is wrong with it, or None."""

import math
from dataclasses import dataclass
from typing import Iterator, List, Optional, Sequence, Union

import numpy as np

from mmnanguard.core import GuardConfigError
from mmnanguard.core.checks import check_value, is_number
from mmnanguard.registry import CHECKS

from .fields import MissingKey, Sample, UnreadableField, check_key, numbers

__all__ = ['Finite', 'NotDegenerate', 'NotEmpty', 'Range']

Keys = Union[str, Sequence[str], None]
# The kinds of NotDegenerate: two notations of boxes, and sets of points.
KINDS = ('xyxy', 'xywh', 'points')


@dataclass(frozen=True)
class FieldCheck:
    """A check of the numbers under its keys.

    It reports at most the first bad element of each array.

    Args:
        key: A key as in :func:`~mmnanguard.datasets.fields.numbers`, or
            several keys.
        allow_missing: Whether a sample without the key passes; otherwise it
            is an error, as the key may be misspelt.

    Raises:
        GuardConfigError: For an argument that is not allowed; when called,
            for a sample without the key.
    """

    key: Keys = None
    allow_missing: bool = False

    def __post_init__(self) -> None:
        is_list = isinstance(self.key, (list, tuple)) and bool(self.key)
        is_right = self.key is None or isinstance(self.key, str) or is_list
        # The error names the class that the user wrote, a subclass.
        where = f'{type(self).__name__}.key'
        check_value(
            is_right, where, self.key, "a key such as 'img', or several"
        )
        # Checked here and not at the first sample: a misspelt expression
        # should end a run before the data are loaded.
        for key in self.keys():
            if key is not None:
                check_key(key)

    def keys(self) -> Sequence[Optional[str]]:
        """Return the keys as a sequence; None stands for the whole sample."""
        if self.key is None or isinstance(self.key, str):
            return [self.key]
        return self.key

    def __call__(self, sample: Sample) -> Optional[str]:
        """Return what is wrong with a sample, or None."""
        messages: List[str] = []
        for key in self.keys():
            try:
                messages += filter(None, self.check_field(key, sample))
            except MissingKey:
                if not self.allow_missing:
                    raise
        return '; '.join(messages) or None

    def check_field(
        self, key: Optional[str], sample: Sample
    ) -> Iterator[Optional[str]]:
        """Yield what is wrong with each array under a key, or None."""
        try:
            for path, array in numbers(sample, key):
                yield self.check_array(path, array)
        except GuardConfigError:
            # A key that does not fit the sample is no finding on its numbers.
            raise
        except Exception as error:  # an expression: whatever it raises
            yield f"'{key}' fails: {type(error).__name__}: {error}"

    def check_array(self, path: str, array: np.ndarray) -> Optional[str]:
        """Return what is wrong with the array at a path, or None."""
        raise NotImplementedError


@CHECKS.register_module()
class Finite(FieldCheck):
    """A check for NaN and Inf; without a key, in the whole sample."""

    def check_array(self, path: str, array: np.ndarray) -> Optional[str]:
        # Integers and booleans have neither NaN nor Inf.
        if array.dtype.kind not in 'fc':
            return None
        bad = ~np.isfinite(array)
        return describe_first(path, array, bad, 'it must be finite')


@CHECKS.register_module()
@dataclass(frozen=True)
class Range(FieldCheck):
    """A check that all elements are from ``min`` to ``max``, both included.

    NaN is outside of every range.

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
            # NaN as a bound would make all samples bad.
            is_right = bound is None or (is_number(bound) and bound == bound)
            check_value(is_right, f'Range.{name}', bound, 'a number or None')
        check_value(bounds != (None, None), 'Range', bounds, 'one bound')
        if self.min is not None and self.max is not None:
            is_right = self.min <= self.max
            check_value(is_right, 'Range.min', self.min, 'at most max')

    def check_array(self, path: str, array: np.ndarray) -> Optional[str]:
        # Elements have to prove that they are good, so that NaN is bad.
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
        return describe_first(path, array, ~good, rule)


@CHECKS.register_module()
@dataclass(frozen=True)
class NotDegenerate(FieldCheck):
    """A check that boxes have an area, and that points do not coincide.

    No boxes at all are fine. NaN is degenerate.

    Args:
        kind: The meaning of the numbers: 'xyxy' and 'xywh' (also 'cxcywh'
            and rotated boxes) for boxes, of shape (..., 4 or more); 'points'
            for sets of points, of shape (..., points, coordinates).
        min_size: The bound that width and height of a box must exceed; for a
            set of points, the bound of the longest side of the box around
            them.
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

    def check_array(self, path: str, array: np.ndarray) -> Optional[str]:
        if array.size == 0:
            return None
        # The least number of dimensions before the last, and its least size.
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
            # Columns 2 and 3 are the opposite corner, or the size itself.
            start = array[..., :2] if self.kind == 'xyxy' else 0.0
            # Inf - Inf is NaN, which counts as bad below: no warning needed.
            with np.errstate(invalid='ignore'):
                size = (array[..., 2:4] - start).min(axis=-1)
            rule = f'its width and height must be above {self.min_size}'
        # Not "size <= min_size": a NaN must count as bad.
        return describe_first(path, array, ~(size > self.min_size), rule)


@CHECKS.register_module()
class NotEmpty(FieldCheck):
    """A check that boxes or masks have an element other than 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_needed(self)

    def check_array(self, path: str, array: np.ndarray) -> Optional[str]:
        if array.any():
            return None
        if array.size == 0:
            return f'{path} is empty'
        return f'{path} is 0 in all of its {array.size} elements'


def within_type(bound: float, dtype: np.dtype) -> float:
    """Return a finite bound clipped to the largest numbers of a dtype.

    Compared with an array of that dtype, a larger bound would be converted
    to Inf and let Inf pass.
    """
    if dtype.kind != 'f' or math.isinf(bound):
        return bound
    limit = float(np.finfo(dtype).max)
    return min(max(bound, -limit), limit)


def check_needed(check: FieldCheck) -> None:
    """Refuse a check without a key, where it needs one."""
    name = type(check).__name__
    allowed = "a key such as 'gt_bboxes', or several"
    check_value(bool(check.key), f'{name}.key', check.key, allowed)


def describe_first(
    path: str, array: np.ndarray, bad: np.ndarray, rule: str
) -> Optional[str]:
    """Describe the first bad element and the rule; None if none is bad.

    Args:
        path: The path of the array in the sample.
        array: The array, of shape (..., any).
        bad: Booleans with its leading dimensions: whether an element, a box
            or a set of points is bad.
        rule: The rule that all elements must keep.
    """
    count = int(bad.sum())
    if not count:
        return None
    # Without dimensions (a single number) the index is empty.
    first = tuple(np.argwhere(bad)[0].tolist())
    where = path
    if first:
        where = f'{path}{list(first)}'
    value = np.array2string(array[first], precision=6, separator=', ')
    # numpy breaks long rows into lines; a finding is a single line.
    value = ' '.join(value.split())[:120]
    more = ''
    if count > 1:
        more = f' (and {count - 1} more of {bad.size})'
    return f'{where} is {value}{more}: {rule}'
