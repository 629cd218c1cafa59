from dataclasses import dataclass
from typing import Collection, Optional, Sequence

import torch
from torch import Tensor

from mmnanguard.core import GuardConfigError
from mmnanguard.core.checks import check_value, is_count, is_finite_number

__all__ = ['InputPolicy', 'is_part']

ACTIONS = ('reject', 'sanitize', 'halt')


@dataclass(frozen=True)
class InputPolicy:
    """What becomes of bad inputs; arguments of ``InputGuardHook``.

    Raises:
        GuardConfigError: For a value that is not allowed, and for one that
            the action does not heed.
    """

    action: str = 'reject'
    keys: Optional[Sequence[str]] = None
    nan: float = 0.0
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
        for name in ('nan', 'posinf', 'neginf', 'interval'):
            value = getattr(self, name)
            if not self.mends and value != getattr(InputPolicy, name):
                raise GuardConfigError(
                    f'InputGuardHook.{name} is {value!r}, but '
                    f'action={self.action!r} replaces no numbers. Leave '
                    f"{name} out, or set action='sanitize'."
                )

    def _refuse(self, name: str, allowed: str) -> None:
        key = f'InputGuardHook.{name}'
        check_value(False, key, getattr(self, name), allowed)

    @property
    def mends(self) -> bool:
        return self.action == 'sanitize'

    def heeds(self, key: str) -> bool:
        """Whether a part with that key is looked at."""
        return self.keys is None or is_part(key, self.keys)

    def check_found(self, found: Collection[str]) -> None:
        """Refuse keys at which there is nothing to look at.

        Raises:
            GuardConfigError: If a key is neither in ``found`` nor above one.
        """
        missing = [
            repr(key)
            for key in self.keys or ()
            if not any(is_part(one, [key]) for one in found)
        ]
        if missing:
            there = ', '.join(sorted(found)) or 'nothing of what it puts out'
            raise GuardConfigError(
                f'InputGuardHook.keys has {", ".join(missing)}, but the data '
                'preprocessor has put out no floating-point numbers there. '
                f'They are in: {there}.'
            )

    def mend(self, tensor: Tensor) -> Tensor:
        """A copy without non-finite numbers. A replacement beyond the dtype
        becomes its extreme.
        """
        largest = torch.finfo(tensor.dtype).max
        nan, posinf, neginf = (
            None if number is None else max(-largest, min(number, largest))
            for number in (self.nan, self.posinf, self.neginf)
        )
        return torch.nan_to_num(tensor, nan, posinf, neginf)


def is_part(key: str, wholes: Sequence[str]) -> bool:
    """Whether it is one of ``wholes``, or below one."""
    return any(f'{key}.'.startswith(f'{whole}.') for whole in wholes)


def is_list_of_names(value: object) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(name, str) for name in value)
    )
