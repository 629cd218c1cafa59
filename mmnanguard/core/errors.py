"""What the guard raises.

::

    NanGuardError (RuntimeError)
    |-- TrainingHalted      the policy is exhausted, or weights are bad
    |   `-- RollbackUnavailable    and there is nothing to go back to
    `-- GuardConfigError    (also a ValueError) a config that cannot work

None derives from TypeError: ``Runner.call_hook`` replaces a TypeError by a
new one without the traceback.
"""

import difflib
import math
from typing import TYPE_CHECKING, Any, Dict, Iterable

if TYPE_CHECKING:
    from .event import GuardEvent

__all__ = [
    'GuardConfigError',
    'NanGuardError',
    'RollbackUnavailable',
    'TrainingHalted',
    'check_keys',
    'check_value',
    'is_count',
    'is_finite_number',
    'is_number',
]


class NanGuardError(RuntimeError):
    """Base of everything that mmnanguard raises on purpose."""


class TrainingHalted(NanGuardError):
    """Training was stopped before it could do harm.

    Args:
        event: The update that stopped the run; kept as ``.event``.
        story: What a user needs in order to act.
    """

    def __init__(self, event: 'GuardEvent', story: str) -> None:
        super().__init__(story)
        self.event = event

    def to_row(self) -> Dict[str, Any]:
        """The last row of an event log."""
        return {
            'schema': 1,
            'kind': 'halt',
            'id': self.event.id,
            'iter': self.event.iter,
            'story': str(self),
        }


class RollbackUnavailable(TrainingHalted):
    """No earlier state is left to which training could go back."""


class GuardConfigError(NanGuardError, ValueError):
    """A config that cannot mean what its author wanted."""


def is_number(value: Any) -> bool:
    """True and False are none; NaN and Inf are."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_finite_number(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def is_count(value: Any, least: int) -> bool:
    """An integer of at least ``least``; True and False are none."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return is_int and value >= least


def check_value(is_right: bool, key: str, value: Any, allowed: str) -> None:
    """Refuse a value that a config has.

    Args:
        is_right: May it pass?
        key: Where it stands, such as 'RollbackHook.interval'.
        value: What it is.
        allowed: What it must be.

    Raises:
        GuardConfigError: If it may not.
    """
    if not is_right:
        raise GuardConfigError(f'{key} is {value!r}: it must be {allowed}.')


def meant(name: str, known: Iterable[str]) -> str:
    """A question for a message, or nothing if no name is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean '{near[0]}'? " if near else ''


def check_keys(
    given: Iterable[str], allowed: Iterable[str], where: str
) -> None:
    """Refuse the first key that is not allowed and name the nearest one.

    Raises:
        GuardConfigError: If ``given`` has a key that ``allowed`` lacks.
    """
    allowed = sorted(allowed)
    for key in given:
        if key not in allowed:
            hint = meant(str(key), allowed)
            raise GuardConfigError(
                f"{where} has an unknown key '{key}': {hint}"
                f'Allowed keys: {", ".join(allowed)}.'
            )
