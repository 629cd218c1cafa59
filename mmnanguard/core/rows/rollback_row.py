"""The row of a run that went back to an earlier state."""

from dataclasses import dataclass
from typing import ClassVar, Optional, Tuple

from mmnanguard._support.console_line import fit, named

from .row_record import RowRecord

__all__ = ['RollbackRow']


@dataclass(frozen=True)
class RollbackRow(RowRecord):
    """A return of training to an earlier state.

    Attributes:
        id: The id of the event that was the reason.
        iter: Iteration at which training went back.
        to: The iteration after which the restored state was kept.
        path: Path of the checkpoint that the state came from; '' if the state
            came from memory.
        num_rollbacks: Number of rollbacks in the run, including this one.
        lr_factor: Factor on learning rates from now on.
        loss_scale: Loss scale from now on; 1.0 without a scaler.
        evidence: The reason why the learning rate was lowered or kept.
    """

    KIND: ClassVar[str] = 'rollback'
    NEEDED: ClassVar[Tuple[str, ...]] = ('to',)

    id: str = ''
    iter: Optional[int] = None
    to: int = 0
    path: str = ''
    num_rollbacks: int = 1
    lr_factor: float = 1.0
    loss_scale: float = 1.0
    evidence: str = ''

    def sentence(self, max_rollbacks: Optional[int] = None) -> str:
        """Describe the rollback in a sentence, without the iteration.

        Args:
            max_rollbacks: The limit of the run, if it is known.
        """
        of_path, of_max, of_evidence = '', '', ''
        if self.evidence:
            of_evidence = f' ({self.evidence})'
        if self.path:
            of_path = f', from {self.path}'
        # The limit is not in the row, so a report does not know it.
        if max_rollbacks is not None:
            of_max = f' of {max_rollbacks}'
        return (
            f'went back to the state after iteration {self.to}{of_path} '
            f'(rollback {self.num_rollbacks}{of_max}); learning rate x '
            f'{self.lr_factor:g}{of_evidence}, loss scale '
            f'{self.loss_scale:g}; data and schedule go on'
        )

    def line(self, max_rollbacks: int) -> str:
        """Return the console line, of at most 160 columns."""
        start = (
            f'Iter {self.iter}: went back to the state after iteration '
            f'{self.to} (rollback {self.num_rollbacks} of {max_rollbacks})'
        )
        scale, source, why = '', [''], ['']
        if self.loss_scale != 1.0:
            scale = f'loss scale {self.loss_scale:g}'
        if self.path:
            source = [*named('from {}', self.path), '']
        if self.evidence:
            why = [self.evidence, '']
        return fit(
            start,
            f'learning rate x {self.lr_factor:g}',
            scale,
            source,
            why,
            ['data and schedule go on', ''],
        )
