"""The row of non-finite state that an audit found."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Dict, Optional, Tuple

from ..bad_tensor import BadTensor
from .row_record import RowRecord

__all__ = ['AuditRow']


@dataclass(frozen=True)
class AuditRow(RowRecord):
    """Non-finite state that ``StateAuditHook`` found.

    Attributes:
        id: Unique in the run.
        run: Name of the run; '' if it is not guarded.
        attempt: Number of the process start.
        iter: From 1.
        epoch: From 1.
        ranks: Ranks that hold something bad.
        where: Of 'weights', 'buffers', 'optimizer' and 'ema', those that are
            bad.
        num_bad: Number of bad tensors.
        tensors: A few of them; their ``tensor`` says where they are.
        checkpoint: Name of the checkpoint that was not written because of
            them; None if none was due.
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

    def to_row(self) -> Dict[str, Any]:
        row = super().to_row()
        row['tensors'] = [asdict(tensor) for tensor in self.tensors]
        return row

    def sentence(self) -> str:
        where = ', '.join(self.where)
        if self.tensors:
            first, more = self.tensors[0], self.num_bad - 1
            story = (
                f"'{first.name}' ({first.tensor}) is {first.kind_in_words}, "
                f'{first.count} of {first.numel}'
            )
            story += f', and {more} more in {where}' if more else ''
        else:
            story = f'{self.num_bad} tensors are not finite in {where}'
        if self.ranks != (0,):
            story += f', on ranks {", ".join(map(str, self.ranks))}'
        if self.checkpoint:
            story += f'; {self.checkpoint} is not written'
        return story

    def line(self) -> str:
        """Return the console line."""
        return f'Iter {self.iter}: audit: {self.sentence()}'
