"""Buffers that rejected updates would keep empty for ever."""

import logging
from typing import TYPE_CHECKING, List

from mmnanguard._console import say
from mmnanguard._support.escape import escape
from mmnanguard.numerics.snapshot.snapshot import Changes, Snapshot
from mmnanguard.numerics.snapshot.tensor_backup import TensorBackup
from mmnanguard.numerics.update.agree import ranks_that

if TYPE_CHECKING:
    from .guard import Guard

__all__ = ['find_empty_buffers']


def find_empty_buffers(
    guard: 'Guard', snapshot: Snapshot, changes: Changes
) -> List[TensorBackup]:
    """Return the buffers that stay as a rejected window has left them.

    A loss may be divided by a buffer that begins at 0 and that forward fills,
    such as a running normalizer. If the buffer is put back each time, each
    update divides by 0. So after a few rejected updates in a row, such buffers
    are not put back until the next commit. Syncs the device, and is
    collective unless each rank judges its micro-batches alone.

    Args:
        guard: The guard of the optimizer.
        snapshot: The copies of the window or micro-batch.
        changes: The changes that its forward passes made on this rank.
    """
    kept = snapshot.find_empty(changes)
    # A rank without them divides by 0 again, and all ranks reject with it.
    if not guard.accumulation.is_local:
        (ranks,) = ranks_that(not kept)
        if ranks:
            return []
    filled = snapshot.tracker.filled
    names = []
    for backup in kept:
        if backup.owner not in filled:
            names.append(guard.names().of_buffer(backup.owner, backup.key))
    for backup in kept:
        filled.add(backup.owner)
    if names:
        say(
            f'Iter {guard.iter}: update after update is rejected, and began '
            f'with nothing but 0 in {escape(", ".join(names[:5]))}: what '
            'forward writes there stays from now on until the next commit, '
            'because the model may divide by it',
            logging.WARNING,
        )
    return kept
