"""Places of the files that this project writes into a run's folders.

MMEngine's ``runner.log_dir`` is ``<work_dir>/<timestamp>``; each process
start of a run has one.
"""

from pathlib import Path
from typing import List

__all__ = [
    'DUMPS_FOLDER',
    'EVENTS_FILE',
    'events_file',
    'events_files',
    'log_dir_of',
    'samples_file',
]

FOLDER = 'nanguard'
# Both paths are relative to the log dir. The names are public: users and
# tools/* find the files by them.
EVENTS_FILE = f'{FOLDER}/events.jsonl'
DUMPS_FOLDER = f'{FOLDER}/dumps'
SAMPLES_NAME = 'stability.jsonl'


def events_file(log_dir: str) -> Path:
    """Return the path of the event log of one process start."""
    return Path(log_dir, EVENTS_FILE)


def samples_file(events_path: Path) -> Path:
    """Return the path of the monitor's samples beside an event log."""
    return events_path.with_name(SAMPLES_NAME)


def events_files(work_dir: str) -> List[Path]:
    """Return the event logs of all process starts in a work dir, sorted."""
    # The folders are named by times, so sorting them gives their order.
    return sorted(Path(work_dir).glob(f'*/{EVENTS_FILE}'))


def log_dir_of(events_path: Path) -> Path:
    """Return the log dir that contains an event log."""
    # Absolute, because a relative path may have too few parents.
    return events_path.absolute().parents[1]
