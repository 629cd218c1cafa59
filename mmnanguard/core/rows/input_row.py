"""The row of non-finite inputs."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Dict, Mapping, Optional, Tuple

from .row_record import RowRecord

__all__ = ['InputRow']

NUM_NAMED = 3  # samples in a sentence
OUTCOMES = {
    'reject': 'the update was rejected',
    'sanitize': 'mended and trained on',
    'halt': 'training halts',
}


@dataclass(frozen=True)
class InputRow(RowRecord):
    """Non-finite inputs that ``InputGuardHook`` found.

    Attributes:
        id: Of the event; of 'sanitize', which has none, unique in the run.
        action: Of the hook: 'reject', 'sanitize' or 'halt'.
        iter: Iteration; of 'sanitize' the last one of the interval.
        since: Of 'sanitize' the first iteration of the interval, else None.
        ranks: Ranks that had bad inputs.
        num_samples: Number of bad samples.
        samples: Their names, as far as they are listed.
        keys: The same by part of the input.
    """

    KIND: ClassVar[str] = 'input'
    NEEDED: ClassVar[Tuple[str, ...]] = ('action',)

    id: str = ''
    action: str = ''
    iter: Optional[int] = None
    since: Optional[int] = None
    ranks: Tuple[int, ...] = (0,)
    num_samples: int = 0
    samples: Tuple[str, ...] = ()
    keys: Mapping[str, Tuple[str, ...]] = field(default_factory=dict)

    def to_row(self) -> Dict[str, Any]:
        row = super().to_row()
        if self.since is None:
            del row['since']
        return row

    def subject(self, with_ranks: bool) -> str:
        """Return how many samples are bad, of which parts, and their names.

        Args:
            with_ranks: Say also on which ranks.
        """
        plural = 's' if self.num_samples != 1 else ''
        ranks = ''
        if with_ranks:
            plural_rank = 's' if len(self.ranks) > 1 else ''
            listed = ', '.join(map(str, self.ranks))
            ranks = f' on rank{plural_rank} {listed}'
        more = self.num_samples - NUM_NAMED
        return (
            f'{self.num_samples} sample{plural} ({", ".join(self.keys)})'
            f'{ranks}: {", ".join(self.samples[:NUM_NAMED])}'
            + (f' and {more} more' if more > 0 else '')
        )

    def sentence(self) -> str:
        subject = self.subject(with_ranks=self.ranks != (0,))
        outcome = OUTCOMES.get(self.action, self.action)
        since = '' if self.since is None else f' since iteration {self.since}'
        return f'input {self._verb} not finite in {subject}; {outcome}{since}'

    def line(self, with_ranks: bool) -> str:
        """Return the console line; the update's own line says its outcome.

        Args:
            with_ranks: Say on which ranks.
        """
        story = f'input {self._verb} not finite in {self.subject(with_ranks)}'
        if self.since is None:
            return f'Iter {self.iter}: {story}'
        outcome = OUTCOMES.get(self.action, self.action)
        return f'Iter {self.since} to {self.iter}: {story}; {outcome}'

    @property
    def _verb(self) -> str:
        return 'is' if self.since is None else 'was'
