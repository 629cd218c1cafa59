"""The change to single micro-batches in a run that loses whole windows."""

import logging

from torch import distributed as dist

from mmnanguard._console import say

from .guard import Guard
from .micro_batches import MicroBatches

__all__ = ['judge_micro_batches']

# Number of windows without a commit after which micro-batches are judged one
# by one, if only losses were bad.
MOST_LOST_WINDOWS = 4


def judge_micro_batches(guard: Guard, is_unscaled: bool) -> None:
    """Judge micro-batches one by one if windows are lost for nothing.

    One micro-batch without labels has a loss of 0/0 and costs its window
    although it does no harm. If each window has such a micro-batch, nothing
    would ever be learnt.

    Args:
        guard: The guard, which has just rejected a window of several losses
            whose gradients are finite.
        is_unscaled: Whether the user has called ``loss_scaler.unscale_``,
            which micro-batches cannot be judged with.
    """
    state = guard.state
    num_lost = state.num_updates
    if state.recent_commits:
        num_lost -= state.recent_commits[-1].update
    is_alone = not (dist.is_available() and dist.is_initialized())
    if is_unscaled or guard.accumulation.is_local:
        return
    # With several ranks, sharded models and communication hooks forbid it.
    if num_lost < MOST_LOST_WINDOWS or not is_alone:
        return
    guard.accumulation = MicroBatches(guard)
    guard.window = guard.accumulation.open()
    say(
        f"Iter {guard.iter}: optimizer '{guard.name}': the last {num_lost} "
        'windows were rejected for losses that are not finite, while '
        'gradients are. From now on each micro-batch is judged by itself: '
        "optim_wrapper.guard.accumulation='microbatch' does so from the start",
        logging.WARNING,
    )
