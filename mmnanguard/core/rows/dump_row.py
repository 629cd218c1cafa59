"""The row of a file from which an update can be run again."""

import shlex
from dataclasses import dataclass
from typing import Any, ClassVar, Dict, Mapping, Optional, Sequence, Tuple

from .row_record import RowRecord

__all__ = ['DumpRow']


@dataclass(frozen=True)
class DumpRow(RowRecord):
    """A dump that ``BatchDumpHook`` wrote.

    Attributes:
        id: Of the event.
        rank: The rank whose batch it holds.
        path: Of the file.
        bytes: Size of the file.
        needs: Options that ``tools/replay.py`` needs besides the file:
            'config', 'checkpoint'.
    """

    KIND: ClassVar[str] = 'dump'
    NEEDED: ClassVar[Tuple[str, ...]] = ('path',)

    id: str = ''
    rank: int = 0
    path: str = ''
    bytes: int = 0
    needs: Tuple[str, ...] = ()

    def to_row(self) -> Dict[str, Any]:
        return {**super().to_row(), 'needs': list(self.needs)}

    def sentence(self) -> str:
        return f'dumped to {self.path} ({self.bytes / 2**20:.1f} MiB)'

    def line(self, remarks: Sequence[str] = ()) -> str:
        """Return the console line.

        Args:
            remarks: Clauses on what the dump lacks.
        """
        story = '; '.join([self.sentence(), *remarks])
        return f'mmnanguard: {story}; run it: {self.command()}'

    def command(self, files: Optional[Mapping[str, str]] = None) -> str:
        """Return the command that replays the dump.

        Args:
            files: Values of the options in ``needs``, by option, as far as
                they are known; 'FILE' stands for the others.
        """
        words = ['python -m mmnanguard replay', shlex.quote(self.path)]
        for option in self.needs:
            file = shlex.quote((files or {}).get(option) or 'FILE')
            words.append(f'--{option} {file}')
        return ' '.join(words)
