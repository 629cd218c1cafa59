"""The row of a dump: a file from which an update can be replayed."""

from dataclasses import dataclass
from typing import ClassVar, Optional, Tuple

from mmnanguard._support.console_line import fit, named

from ..launch import near, tool_command
from .row_record import NewRow, RowRecord

__all__ = ['DumpRow']


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
        checkpoint: Path of a checkpoint that is older than the dump, for a
            dump without weights; None if there was none.
        remarks: Clauses about parts that the dump lacks, and why.
    """

    KIND: ClassVar[str] = 'dump'
    NEEDED: ClassVar[Tuple[str, ...]] = ('path',)

    id: str = ''
    rank: int = 0
    path: str = ''
    bytes: int = 0
    needs: Tuple[str, ...] = ()
    checkpoint: Optional[str] = None
    remarks: Tuple[str, ...] = ()

    def to_row(self) -> NewRow:
        # Lists, as in the file, for hooks that receive the row.
        row = super().to_row()
        row.update(needs=list(self.needs), remarks=list(self.remarks))
        return row

    def sentence(self) -> str:
        return f'dumped to {self.path} ({self.bytes / 2**20:.1f} MiB)'

    def line(self) -> str:
        """Return the console line, of at most 160 columns.

        Its command runs in the folder in which training was started.
        """
        checkpoint = self.checkpoint and near(self.checkpoint)
        here = self.replace(path=near(self.path), checkpoint=checkpoint)
        run = f'run it: {here.command()}'
        return fit(
            [
                f'mmnanguard: {self.sentence()}; {run}',
                f'mmnanguard: dumped ({self.bytes / 2**20:.1f} MiB); {run}',
                f'mmnanguard: {run}',
                *named(
                    'mmnanguard: dumped to {}; the report has the command',
                    self.path,
                ),
            ],
            *[[remark, ''] for remark in self.remarks],
        )

    def command(self) -> str:
        """Return the command that replays the dump.

        An option that needs a file that is not known gets the placeholder
        'FILE'.
        """
        words = [self.path]
        # The row comes from a file, which may name anything as needed.
        if 'config' in self.needs:
            words += ['--config', 'FILE']
        if 'checkpoint' in self.needs:
            words += ['--checkpoint', self.checkpoint or 'FILE']
        return tool_command('replay', *words)
