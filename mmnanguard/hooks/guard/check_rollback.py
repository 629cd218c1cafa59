"""The check that a run which is to roll back can do so."""

from typing import Mapping

from mmnanguard.core import GuardConfigError
from mmnanguard.numerics.guard_protocol import GuardProtocol

__all__ = ['check_rollback']


def check_rollback(
    guards: Mapping[str, GuardProtocol], has_rollback: bool
) -> None:
    """Refuse guards that need a ``RollbackHook`` where there is none.

    Raises:
        GuardConfigError: If a guard is to roll back and cannot.
    """
    for name, guard in guards.items():
        if guard.policy.when_exhausted == 'rollback' and not has_rollback:
            raise GuardConfigError(
                f"optim_wrapper.guard.when_exhausted is 'rollback' (optimizer "
                f"'{name}'), which takes default_hooks=dict(rollback=dict("
                "type='mmnanguard.RollbackHook'))."
            )
