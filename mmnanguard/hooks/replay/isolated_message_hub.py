"""The isolation of a replay from MMEngine's message hub."""

from contextlib import contextmanager
from typing import Iterator

from mmengine.logging import MessageHub

__all__ = ['isolated_message_hub']


@contextmanager
def isolated_message_hub(iteration: int) -> Iterator[None]:
    """Show a replay its own iteration in the hub, and undo what it logs.

    Models read the iteration from the global hub and log scalars to it.

    Args:
        iteration: The iteration that is replayed, counted from 0.
    """
    hub = MessageHub.get_current_instance()
    infos = dict(hub.runtime_info)
    scalars = dict(hub.log_scalars)
    histories = []
    for scalar in scalars.values():
        # No copies of the arrays: HistoryBuffer.update makes new ones
        # (MMEngine 0.10.7, logging/history_buffer.py#L76).
        histories.append((scalar, scalar._log_history, scalar._count_history))
    hub.runtime_info['iter'] = iteration
    try:
        yield
    finally:
        # In place, because other code may hold a reference to these dicts.
        hub.runtime_info.clear()
        hub.runtime_info.update(infos)
        hub.log_scalars.clear()
        hub.log_scalars.update(scalars)
        for scalar, values, counts in histories:
            scalar._log_history = values
            scalar._count_history = counts
