"""The arguments of ``InputGuardHook``, checked."""

from dataclasses import dataclass
from itertools import repeat
from typing import Collection, Optional, Sequence

import torch
from torch import Tensor

from mmnanguard.core import GuardConfigError
from mmnanguard.core.checks import check_value, is_count, is_finite_number

__all__ = ['InputPolicy', 'is_part']

ACTIONS = ('reject', 'sanitize', 'halt', 'explain')


@dataclass(frozen=True)
class InputPolicy:
    """The arguments of ``InputGuardHook``: parts to check, and the action.

    Raises:
        GuardConfigError: For a value that is not allowed, and for a value
            that the action does not use.
    """

    action: str = 'reject'
    keys: Optional[Sequence[str]] = None
    nan: float = 0.0
    # Not the extreme of the dtype, as in `torch.nan_to_num`: a convolution
    # turns such an input into Inf again.
    posinf: Optional[float] = 0.0
    neginf: Optional[float] = 0.0
    interval: int = 50

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            self._refuse('action', f'one of {", ".join(ACTIONS)}')
        if self.keys is not None and not is_list_of_names(self.keys):
            self._refuse(
                'keys',
                "a list of names such as ['inputs', "
                "'data_samples.gt_instances.bboxes'], or None for everything",
            )
        if not is_finite_number(self.nan):
            self._refuse('nan', 'a finite number')
        for name in ('posinf', 'neginf'):
            number = getattr(self, name)
            if number is not None and not is_finite_number(number):
                self._refuse(
                    name,
                    'a finite number, or None for the extreme of the dtype',
                )
        if not is_count(self.interval, least=1):
            self._refuse('interval', 'a number of iterations, 1 or more')
        if not self.sanitizes:
            self._refuse_unused()

    def _refuse(self, name: str, allowed: str) -> None:
        key = f'InputGuardHook.{name}'
        check_value(False, key, getattr(self, name), allowed)

    def _refuse_unused(self) -> None:
        """Refuse arguments that only 'sanitize' uses."""
        # Ignored silently, they would pass for a repair that never happens.
        for name in ('nan', 'posinf', 'neginf', 'interval'):
            value = getattr(self, name)
            if value != getattr(InputPolicy, name):
                raise GuardConfigError(
                    f'InputGuardHook.{name} is {value!r}, but '
                    f'action={self.action!r} replaces no numbers. Leave '
                    f"{name} out, or set action='sanitize'."
                )

    @property
    def sanitizes(self) -> bool:
        """Whether bad numbers are replaced, and the update goes on."""
        return self.action == 'sanitize'

    @property
    def rejects(self) -> bool:
        """Whether bad inputs alone reject an update."""
        return self.action in ('reject', 'halt')

    def includes(self, key: str) -> bool:
        """Whether the part with this key is checked."""
        return self.keys is None or is_part(key, self.keys)

    def check_keys(self, present: Collection[str]) -> None:
        """Refuse keys that select no part of the preprocessor's output.

        Args:
            present: Keys of all parts that can be checked.

        Raises:
            GuardConfigError: If a key is neither in ``present`` nor the
                beginning of a key in it.
        """
        missing = []
        for key in self.keys or ():
            if not any(map(is_part, present, repeat([key]))):
                missing.append(repr(key))
        if missing:
            places = ', '.join(sorted(present)) or 'no part of its output'
            raise GuardConfigError(
                f'InputGuardHook.keys has {", ".join(missing)}, but the data '
                'preprocessor has put out no floating-point numbers there. '
                f'They are in: {places}.'
            )

    def sanitize(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor, its non-finite numbers replaced."""
        # A replacement beyond the range of the dtype would be Inf again.
        largest = torch.finfo(tensor.dtype).max
        return torch.nan_to_num(
            tensor,
            clamp(self.nan, largest),
            clamp(self.posinf, largest),
            clamp(self.neginf, largest),
        )


def clamp(number: Optional[float], largest: float) -> Optional[float]:
    """Return the nearest number in ``[-largest, largest]``; None for None."""
    if number is None:
        return None
    return max(-largest, min(number, largest))


def is_part(key: str, wholes: Sequence[str]) -> bool:
    """Whether ``key`` is a key of ``wholes``, or a key below it."""
    # The dot is needed, so that 'inputs2' is no part of 'inputs'.
    prefixes = tuple(map('{}.'.format, wholes))
    return f'{key}.'.startswith(prefixes)


def is_list_of_names(value: object) -> bool:
    """Whether a value is a list or tuple of at least one string."""
    # A string is refused, although it is a sequence of one-letter strings.
    if not isinstance(value, (list, tuple)) or not value:
        return False
    return all(isinstance(name, str) for name in value)
