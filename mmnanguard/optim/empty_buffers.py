"""Buffers that rejected updates would keep empty for ever."""

import logging
from typing import TYPE_CHECKING, List

from mmengine.logging import print_log

from mmnanguard._support.escape import escape
from mmnanguard.core import Cause, Observation
from mmnanguard.core.rules.decide import does_harm
from mmnanguard.numerics.snapshot.snapshot import Changes, Snapshot
from mmnanguard.numerics.snapshot.tensor_backup import TensorBackup
from mmnanguard.numerics.update.agree import ranks_that

if TYPE_CHECKING:
    from .guard import Guard

__all__ = ['find_empty_buffers']

# Number of rejected updates in a row after which such a buffer is a suspect.
# MMEngine would lose one; fewer than four may just hold bad samples.
NUM_REJECTED = 4


def find_empty_buffers(
    guard: 'Guard',
    snapshot: Snapshot,
    seen: Observation,
    cause: Cause,
    changes: Changes,
) -> List[TensorBackup]:
    """Return the buffers that stay as a rejected window has left them.

    A loss may be divided by a buffer that begins at 0 and that forward fills,
    such as a running normalizer. If the buffer is put back each time, each
    update divides by 0. So after a few rejected updates in a row, such buffers
    are not put back until the next commit. Only then this syncs the device
    and is collective, unless micro-batches are judged on each rank.

    Args:
        guard: The guard of the optimizer.
        snapshot: The copies of the window or micro-batch.
        seen: The facts about it.
        cause: The cause of its rejection.
        changes: The changes that its forward passes made on this rank.
    """
    num_rejected = guard.state.consecutive_skips + 1
    is_suspect = (
        num_rejected >= NUM_REJECTED
        and seen.input_is_finite
        and not (seen.loss_is_finite and seen.grad_is_finite)
        and not cause.is_routine
        and does_harm(cause, seen)
    )
    if not is_suspect:
        return []
    kept = snapshot.find_empty(changes)
    # A rank without them divides by 0 again, and all ranks reject with it.
    if not guard.accumulation.is_local and ranks_that(not kept):
        return []
    filled = snapshot.tracker.filled
    names = []
    for backup in kept:
        if backup.owner not in filled:
            names.append(guard.names().of_buffer(backup.owner, backup.key))
    filled.update([backup.owner for backup in kept])
    if names:
        print_log(
            f'Iter {guard.iter}: {num_rejected} updates in a row began with '
            f'zeros in {escape(", ".join(names[:5]))} and were rejected: what '
            'forward writes there now stays until the next commit, because '
            'a division by 0 would never end',
            logger='current',
            level=logging.WARNING,
        )
    return kept
