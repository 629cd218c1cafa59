from contextlib import contextmanager
from typing import Iterator

from mmengine.logging import MessageHub

__all__ = ['isolated_message_hub']


@contextmanager
def isolated_message_hub(iteration: int) -> Iterator[None]:
    """Let a replay find the iteration that it is of in MMEngine's message
    hub, and leave no scalar in it.

    Args:
        iteration: From 0, as the hub has it.
    """
    hub = MessageHub.get_current_instance()
    infos = dict(hub.runtime_info)
    scalars = dict(hub.log_scalars)
    histories = {
        name: (scalar._log_history, scalar._count_history)
        for name, scalar in scalars.items()
    }
    hub.runtime_info['iter'] = iteration
    try:
        yield
    finally:
        hub.runtime_info.clear()
        hub.runtime_info.update(infos)
        hub.log_scalars.clear()
        hub.log_scalars.update(scalars)
        for name, (values, counts) in histories.items():
            scalars[name]._log_history = values
            scalars[name]._count_history = counts
