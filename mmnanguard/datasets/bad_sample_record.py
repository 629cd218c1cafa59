"""A record of bad samples that the processes of a dataset share."""

import json
import os
import tempfile
import weakref
from typing import Dict
from uuid import uuid4

from mmnanguard.core.rows.json_numbers import to_json

__all__ = ['BadSampleRecord']


class BadSampleRecord:
    """The bad samples that all processes of a dataset have met.

    It is a file with a line for each sample, appended by the process that
    meets the sample first. A worker process gets a copy of the record,
    whether it was forked or spawned; the copies share the file's name. (A
    deep copy is for another dataset, and begins empty.) There is no file
    before the first bad sample, and the process that made the record removes
    the file when the process ends.
    """

    def __init__(self) -> None:
        name = f'mmnanguard_bad_samples_{uuid4().hex}.jsonl'
        self.path = os.path.join(tempfile.gettempdir(), name)
        self._stories: Dict[str, str] = {}
        # The part of the file before it has been read.
        self._offset = 0
        weakref.finalize(self, remove, self.path, os.getpid())

    def __deepcopy__(self, memo: Dict[int, object]) -> 'BadSampleRecord':
        return BadSampleRecord()

    def add(self, name: str, story: str) -> bool:
        """Record a sample; return whether no process had recorded it.

        Args:
            name: The name of the sample.
            story: A text that says what is wrong with it.

        Raises:
            OSError: If the file cannot be read or written.
        """
        if name in self.read():
            return False
        row = to_json({'name': name, 'story': story}) + '\n'
        # A single write to a file that is open for appending: the lines of
        # several processes do not mix.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        # Readable for the user only: names may be confidential.
        file = os.open(self.path, flags, 0o600)
        try:
            os.write(file, row.encode('utf-8', 'backslashreplace'))
        finally:
            os.close(file)
        return True

    def read(self) -> Dict[str, str]:
        """Return what was wrong with each sample so far, by name."""
        if os.path.exists(self.path):
            with open(self.path, 'rb') as file:
                file.seek(self._offset)
                lines = file.readlines()
            for line in lines:
                # A line without an end is being written: read it next time.
                if line.endswith(b'\n'):
                    self._offset += len(line)
                    self._note(line)
        return self._stories

    def _note(self, line: bytes) -> None:
        try:
            row = json.loads(line)
        except ValueError:  # the disk was full
            return
        # Two processes may meet a sample at the same time: the first line
        # counts.
        self._stories.setdefault(row['name'], row['story'])


def remove(path: str, owner: int) -> None:
    """Remove the file if this is the process that made the record.

    A forked worker inherits the finalizer, and must not remove it.
    """
    if os.getpid() == owner and os.path.exists(path):
        os.unlink(path)
