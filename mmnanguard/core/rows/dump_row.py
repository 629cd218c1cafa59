"""The row of a dump: a file from which an update can be replayed."""

from dataclasses import dataclass
from typing import ClassVar, Mapping, Optional, Sequence, Tuple

from mmnanguard._support.escape import escape, shell_word

from .row_record import NewRow, RowRecord

__all__ = ['DumpRow']

# The options of the replay that may name a file besides the dump.
OPTIONS = ('config', 'checkpoint')


@dataclass(frozen=True)
class DumpRow(RowRecord):
    """A dump that ``BatchDumpHook`` wrote.

    Attributes:
        id: The id of the event whose update was dumped.
        rank: The rank whose batch the file holds.
        path: Path of the file.
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

    def to_row(self) -> NewRow:
        # A list, as in the file, for hooks that receive the row.
        return {**super().to_row(), 'needs': list(self.needs)}

    def sentence(self) -> str:
        return f'dumped to {self.path} ({self.bytes / 2**20:.1f} MiB)'

    def line(self, remarks: Sequence[str] = ()) -> str:
        """Return the console line.

        Args:
            remarks: Clauses about parts that the dump lacks.
        """
        story = '; '.join([self.sentence(), *remarks])
        return escape(f'mmnanguard: {story}; run it: {self.command()}')

    def command(self, files: Optional[Mapping[str, str]] = None) -> str:
        """Return the command that replays the dump.

        Args:
            files: Values of the options in ``needs``, by option. An option
                that is missing gets the placeholder 'FILE'.
        """
        # Paths are quoted, because the user pastes the command into a shell.
        words = ['python -m mmnanguard replay', shell_word(self.path)]
        for option in OPTIONS:
            # The row comes from a file, which may name anything as needed.
            if option in self.needs:
                file = shell_word((files or {}).get(option) or 'FILE')
                words.append(f'--{option} {file}')
        return ' '.join(words)
