from typing import NoReturn

from mmengine.runner import Runner

from mmnanguard.core import TrainingHalted

__all__ = ['halt']


def halt(runner: Runner, error: TrainingHalted) -> NoReturn:
    """End training, the story in the log and in the event log. No hook of the
    end of a run is called, which would save or publish it as if it had
    succeeded.

    To be called on all ranks, after all other consequences.

    Raises:
        TrainingHalted: ``error``.
    """
    runner.logger.error(str(error))
    runner.call_hook('after_guard_row', row=error.to_row())
    raise error
