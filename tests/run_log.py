"""The log of a run, as a person reads it."""

import re
from pathlib import Path

__all__ = ['unwrapped_log']


def unwrapped_log(runner):
    """Return the log of a run, with the lines of each message joined.

    A message that is longer than the console goes on in the next line, with
    an indent.
    """
    (path,) = Path(runner.log_dir).glob('*.log')
    return re.sub(r'\n +(?=\S)', ' ', path.read_text())
