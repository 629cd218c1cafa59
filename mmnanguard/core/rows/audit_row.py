"""The row of an audit that found non-finite state."""

from dataclasses import asdict, dataclass
from typing import ClassVar, Optional, Tuple

from mmnanguard._support.console_line import fit, named

from ..bad_tensor import BadTensor
from .phrases import and_more, ranks_in_words
from .row_record import NewRow, RowRecord

__all__ = ['AuditRow']


@dataclass(frozen=True)
class AuditRow(RowRecord):
    """Non-finite state that ``StateAuditHook`` found.

    Attributes:
        id: The id of the audit, unique in the attempt.
        run: Name of the run; '' if the run is not guarded.
        attempt: Number of the process start, from 1.
        iter: Iteration of the audit, from 1.
        epoch: Epoch of the audit, from 1.
        ranks: Ranks on which bad tensors were found.
        where: The parts of the state with bad tensors: 'weights', 'buffers',
            'optimizer', 'ema'.
        num_bad: Number of bad tensors.
        tensors: A few bad tensors. Their ``tensor`` is the part of the state.
        checkpoint: Name of the checkpoint that was not written because of
            the bad tensors; None if no checkpoint was due.
    """

    KIND: ClassVar[str] = 'audit'
    NEEDED: ClassVar[Tuple[str, ...]] = ('num_bad',)

    id: str = ''
    run: str = ''
    attempt: int = 1
    iter: Optional[int] = None
    epoch: Optional[int] = None
    ranks: Tuple[int, ...] = (0,)
    where: Tuple[str, ...] = ()
    num_bad: int = 0
    tensors: Tuple[BadTensor, ...] = ()
    checkpoint: Optional[str] = None

    def to_row(self) -> NewRow:
        row = super().to_row()
        # Hooks receive the row too, and a record is no JSON.
        row['tensors'] = list(map(asdict, self.tensors))
        return row

    def sentence(self) -> str:
        parts = [self._finding(), self._consequence()]
        return '; '.join(filter(None, parts))

    def _finding(self) -> str:
        where = ', '.join(self.where)
        if self.tensors:
            first, more = self.tensors[0], self.num_bad - 1
            story = (
                f"'{first.name}' ({first.tensor}) is {first.kind_in_words}, "
                f'{first.count} of {first.numel}'
            )
            if more:
                story += f', and {more} more in {where}'
        else:
            story = f'{self.num_bad} tensors are not finite in {where}'
        # (0,) is also the value of every run on a single rank.
        if self.ranks != (0,):
            story += f', on {ranks_in_words(self.ranks)}'
        return story

    def _consequence(self) -> str:
        if not self.checkpoint:
            return ''
        return f'{self.checkpoint} is not written'

    def line(self) -> str:
        """Return the console line, of at most 160 columns."""
        start = f'Iter {self.iter}: audit'
        finding = [f'{start}: {self._finding()}']
        if self.tensors:
            first = self.tensors[0]
            brief = (
                f"{start}: '{{}}' ({first.tensor}) is {first.kind_in_words}"
            )
            finding += named(
                f'{brief}{and_more(self.num_bad - 1)}', first.name
            )
        checkpoint = ['']
        if self.checkpoint:
            checkpoint = [*named('{} is not written', self.checkpoint), '']
        return fit(finding, checkpoint)
