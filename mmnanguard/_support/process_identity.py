"""The identity of a process, by which another process can look for it."""

import os
import socket
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

__all__ = ['is_alive', 'this_process']

# Only Linux tells when a process began. Without that, a number may belong to
# another process by now.
PROC = Path('/proc')


def this_process() -> Optional[Dict[str, Any]]:
    """Return host, namespace, number and begin of this process.

    Returns:
        A dict that JSON can hold; None where the system cannot tell.
    """
    pid = os.getpid()
    begin = begin_of(pid)
    if begin is None:
        return None
    return {**machine(), 'pid': pid, 'begin': begin}


def is_alive(process: object) -> Optional[bool]:
    """Whether a process still runs; None if this machine cannot tell.

    Args:
        process: The value of :func:`this_process`, from whatever file.
    """
    here = machine()
    if not isinstance(process, Mapping) or begin_of(os.getpid()) is None:
        return None
    # On another machine, or in another container, equal numbers mean nothing.
    for key, value in here.items():
        if process.get(key) != value:
            return None
    pid = process.get('pid')
    if not isinstance(pid, int):
        return None
    return begin_of(pid) == process.get('begin')


def machine() -> Dict[str, str]:
    """Return what is equal for all processes that see each other."""
    try:
        namespace = os.readlink(PROC / 'self' / 'ns' / 'pid')
    except OSError:
        namespace = ''
    return {'host': socket.gethostname(), 'namespace': namespace}


def begin_of(pid: int) -> Optional[int]:
    """Return when a process began, in ticks since boot; None if it is gone."""
    try:
        stat = (PROC / str(pid) / 'stat').read_text(errors='replace')
        # The name of the program, in parentheses, may hold anything.
        fields = stat.rpartition(')')[2].split()
        # A zombie has ended, and waits for its parent to notice.
        if fields[0] in ('Z', 'X'):
            return None
        return int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
