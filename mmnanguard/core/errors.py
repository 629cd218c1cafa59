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
from typing import TYPE_CHECKING, Any, Iterable

if TYPE_CHECKING:
    from .event import GuardEvent

__all__ = [
    'GuardConfigError',
    'NanGuardError',
    'RollbackUnavailable',
    'TrainingHalted',
    'check_keys',
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


class RollbackUnavailable(TrainingHalted):
    """No earlier state is left to which training could go back."""


class GuardConfigError(NanGuardError, ValueError):
    """A config that cannot mean what its author wanted."""


def is_number(value: Any) -> bool:
    """A finite one; True and False are none."""
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


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
            near = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ''
            raise GuardConfigError(
                f"{where} has an unknown key '{key}': {hint}"
                f'Allowed keys: {", ".join(allowed)}.'
            )
