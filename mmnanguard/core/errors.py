"""The errors that mmnanguard raises on purpose.

::

    NanGuardError (RuntimeError)
    |-- TrainingHalted      the run was ended on purpose
    |   `-- RollbackUnavailable    no earlier state is left to go back to
    `-- GuardConfigError    a config that cannot work; also a ValueError
"""

__all__ = ['GuardConfigError', 'NanGuardError']


# No error here may derive from TypeError: MMEngine's Runner.call_hook replaces
# a TypeError by a new one without the traceback (mmengine/runner/runner.py).
class NanGuardError(RuntimeError):
    """Base of all errors that mmnanguard raises on purpose."""


# Also a ValueError, for code that catches the errors of bad arguments.
class GuardConfigError(NanGuardError, ValueError):
    """A config that cannot mean what its author wanted."""
