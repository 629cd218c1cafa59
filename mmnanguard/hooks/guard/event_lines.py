"""The lines about events in the console: their level, and how often."""

import logging

from mmengine.runner import Runner

from mmnanguard.core import GuardEvent
from mmnanguard.numerics.guard_protocol import GuardProtocol

from .._shared.find_guards import find_wrappers

__all__ = ['level_of', 'warn_of_no_commit']

# Number of updates without a commit after which the user is warned.
LEAST_IDLE = 64


def level_of(event: GuardEvent) -> int:
    """Return the level at which the event is logged.

    A dataset may have many batches that reject their update and do no harm.
    They are shown at intervals that double.
    """
    # Overflows are expected while the loss scale is not yet proven.
    if event.is_routine:
        return logging.INFO
    if event.counts or is_power_of_two(event.total_skips):
        return logging.WARNING
    return logging.DEBUG


def warn_of_no_commit(
    runner: Runner, guard: GuardProtocol, event: GuardEvent
) -> None:
    """Say that nothing is learnt, at intervals that double.

    Updates that do no harm never halt a run, however many there are.
    """
    commits = guard.state.recent_commits
    idle = guard.state.num_updates
    if commits:
        idle -= commits[-1].update
    if event.counts or idle < LEAST_IDLE or not is_power_of_two(idle):
        return
    hint = ''
    if find_wrappers(runner)[guard.name]._accumulative_counts > 1:
        hint = (
            ' One such micro-batch costs its whole window, unless '
            "optim_wrapper.guard.accumulation is 'microbatch'."
        )
    runner.logger.error(
        f"mmnanguard: optimizer '{guard.name}': NONE OF THE LAST {idle} "
        'UPDATES WAS COMMITTED, because their losses or inputs are not '
        f'finite, although gradients are. See the lines above.{hint}'
    )


def is_power_of_two(number: int) -> bool:
    """Whether a positive number is 1, 2, 4, 8, ..."""
    return number & (number - 1) == 0
