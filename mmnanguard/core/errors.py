"""The errors that mmnanguard raises on purpose.

::

    NanGuardError (RuntimeError)
    |-- TrainingHalted      the policy is exhausted, or weights are bad
    |   `-- RollbackUnavailable    and there is nothing to go back to
    `-- GuardConfigError    (also a ValueError) a config that cannot work
"""

__all__ = ['GuardConfigError', 'NanGuardError']


# No error here may derive from TypeError: MMEngine's Runner.call_hook replaces
# a TypeError by a new one without the traceback (mmengine/runner/runner.py).
class NanGuardError(RuntimeError):
    """Base of all errors that mmnanguard raises on purpose."""


# A ValueError, too, so that code that catches bad arguments catches this.
class GuardConfigError(NanGuardError, ValueError):
    """A config that cannot mean what its author wanted."""
