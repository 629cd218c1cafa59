"""The only way in which a hook ends training."""

import logging
from typing import NoReturn

from mmengine.runner import Runner

from mmnanguard._console import say
from mmnanguard.core import TrainingHalted

__all__ = ['halt']


def halt(runner: Runner, error: TrainingHalted) -> NoReturn:
    """Log the reason, write it to the event log, and end training.

    All ranks must call it, after all other consequences of the event.
    MMEngine calls neither ``after_train`` nor ``after_run`` of any hook
    after an exception, so no hook saves or publishes the run as if it had
    succeeded.

    Raises:
        TrainingHalted: ``error``.
    """
    say(str(error), logging.ERROR, runner.logger)
    # Before the exception: nothing is called after it.
    runner.call_hook('after_guard_row', row=error.to_row())
    raise error
