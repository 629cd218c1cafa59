"""The one way in which the package writes to a run's log."""

import logging
from typing import Optional

from mmengine.logging import MMLogger

from mmnanguard._support.console_line import wrap
from mmnanguard._support.escape import escape_lines

__all__ = ['say']


def say(
    text: str,
    level: int = logging.INFO,
    logger: Optional[logging.Logger] = None,
) -> None:
    """Log a message whose lines are at most 160 columns.

    The logger's prefix does not count. The line of an event fits already, as
    its record makes it so; other messages are wrapped.

    Args:
        text: The message, which is escaped.
        level: A level of ``logging``.
        logger: The logger; None means MMEngine's current one.
    """
    if logger is None:
        logger = MMLogger.get_current_instance()
    # MMEngine's log names the line that reports an error: that of the caller.
    logger.log(level, wrap(escape_lines(text)), stacklevel=2)
