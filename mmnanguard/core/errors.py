"""What the guard raises.

::

    NanGuardError (RuntimeError)
    |-- TrainingHalted      the policy is exhausted, or weights are bad
    |   `-- RollbackUnavailable    and there is nothing to go back to
    `-- GuardConfigError    (also a ValueError) a config that cannot work

None derives from TypeError: ``Runner.call_hook`` replaces a TypeError by a
new one without the traceback.
"""

__all__ = ['GuardConfigError', 'NanGuardError']


class NanGuardError(RuntimeError):
    """Base of everything that mmnanguard raises on purpose."""


class GuardConfigError(NanGuardError, ValueError):
    """A config that cannot mean what its author wanted."""
