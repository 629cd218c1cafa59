import json
import os
import tempfile
import weakref
from typing import Dict
from uuid import uuid4

from mmnanguard.core.rows.json_numbers import to_json

__all__ = ['BadSampleRecord']


class BadSampleRecord:
    """The bad samples that all of a dataset's processes came upon.

    A file with a line for each, appended by the process that comes upon it
    first. Of the record itself a worker gets a copy, whether it was forked or
    spawned; what the copies share is the file's name. (A deep copy is for
    another dataset, and begins anew.) There is no file before the first bad
    sample, and it goes with the process that made the record.
    """

    def __init__(self) -> None:
        name = f'mmnanguard_bad_samples_{uuid4().hex}.jsonl'
        self.path = os.path.join(tempfile.gettempdir(), name)
        self._stories: Dict[str, str] = {}
        self._offset = 0
        weakref.finalize(self, remove, self.path, os.getpid())

    def __deepcopy__(self, memo: dict) -> 'BadSampleRecord':
        return BadSampleRecord()

    def add(self, name: str, story: str) -> bool:
        """Note a sample; is it the first time, in all processes?

        Raises:
            OSError: If the file cannot be read or written.
        """
        if name in self.read():
            return False
        row = to_json({'name': name, 'story': story}) + '\n'
        # One write to a file that is open for appending: no line is torn.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        file = os.open(self.path, flags, 0o600)
        try:
            os.write(file, row.encode('utf-8', 'backslashreplace'))
        finally:
            os.close(file)
        return True

    def read(self) -> Dict[str, str]:
        """What was wrong with each sample so far, by name."""
        if os.path.exists(self.path):
            with open(self.path, 'rb') as file:
                file.seek(self._offset)
                lines = file.readlines()
            for line in lines:
                if line.endswith(b'\n'):
                    self._offset += len(line)
                    self._note(line)
        return self._stories

    def _note(self, line: bytes) -> None:
        try:
            row = json.loads(line)
        except ValueError:  # the disk was full
            return
        self._stories.setdefault(row['name'], row['story'])


def remove(path: str, owner: int) -> None:
    """A forked worker has the finalizer as well."""
    if os.getpid() == owner and os.path.exists(path):
        os.unlink(path)
