"""The row of non-finite inputs."""

from dataclasses import dataclass, field
from typing import ClassVar, Mapping, Optional, Tuple

from mmnanguard._support.console_line import NAME_WIDTHS, fit, shorten_name

from .phrases import and_more, plural, ranks_in_words
from .row_record import NewRow, RowRecord

__all__ = ['InputRow']

# Number of samples in a sentence; the row lists more.
NUM_NAMED = 3
# By the action of the hook; an action of another version stands for itself.
OUTCOMES = {
    'reject': 'the update was rejected',
    'sanitize': 'mended and trained on',
    'halt': 'training halts',
    'explain': 'the check of inputs itself rejects nothing',
}


@dataclass(frozen=True)
class InputRow(RowRecord):
    """Non-finite inputs that ``InputGuardHook`` found.

    Attributes:
        id: The id of the event whose update had the inputs. With 'sanitize'
            there is no event, and the id is unique in the attempt.
        action: Action of the hook: 'reject', 'sanitize', 'halt' or
            'explain'.
        iter: Iteration; with 'sanitize', the last iteration of the interval.
        since: With 'sanitize', the first iteration of the interval; else
            None.
        ranks: Ranks that had bad inputs.
        num_samples: Number of bad samples.
        samples: Names of bad samples, up to a limit.
        keys: Names of bad samples for each part of the input.
        usual: The keys that are not finite in committed updates, too. The
            model masks them, so they explain nothing.
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
    usual: Tuple[str, ...] = ()

    def to_row(self) -> NewRow:
        row = super().to_row()
        # Only a report on an interval has this key.
        if self.since is None:
            del row['since']
        # Only an explanation knows of other updates.
        if not self.usual:
            del row['usual']
        return row

    def subject(self, with_ranks: bool) -> str:
        """Return the number of bad samples, their parts and their names.

        Args:
            with_ranks: Whether to name the ranks, too.
        """
        ranks = ''
        if with_ranks:
            # At least 1: a row of another version may have no ranks.
            noun = plural('rank', max(1, len(self.ranks)))
            ranks = f' on {noun} {", ".join(map(str, self.ranks))}'
        return (
            f'{self.num_samples} {plural("sample", self.num_samples)} '
            f'({", ".join(self.keys)}){ranks}: '
            f'{", ".join(self.samples[:NUM_NAMED])}'
            f'{and_more(self.num_samples - NUM_NAMED)}'
        )

    def sentence(self) -> str:
        # A report does not know whether the run had more ranks than one.
        subject = self.subject(with_ranks=self.ranks != (0,))
        sentence = f'{self._fault(subject)}; {self._outcome}{self._remark}'
        if self.since is not None:
            sentence += f' since iteration {self.since}'
        return sentence

    def line(self, with_ranks: bool) -> str:
        """Return the console line, of at most 160 columns.

        Args:
            with_ranks: Whether to name the ranks.
        """
        when, outcome = f'Iter {self.iter}', ''
        # The line of the rejected update has the outcome.
        if self.since is not None:
            when, outcome = f'Iter {self.since} to {self.iter}', self._outcome
        faults = [f'{when}: {self._fault(self.subject(with_ranks))}']
        for width in NAME_WIDTHS:
            subject = self._brief_subject(with_ranks, width)
            faults.append(f'{when}: {self._fault(subject)}')
        remark = ['']
        if self.usual:
            remark = [self._remark[2:], 'the model seems to mask it']
        return fit(faults, outcome, remark)

    def _brief_subject(self, with_ranks: bool, width: int) -> str:
        """Return the first bad sample, its part and the number of others."""
        ranks, sample = '', 'a sample'
        if with_ranks:
            ranks = f' on {ranks_in_words(self.ranks)}'
        if self.samples:
            sample = f"'{shorten_name(self.samples[0], width)}'"
        key = ''
        if self.keys:
            key = f' ({shorten_name(next(iter(self.keys)), width)})'
        return f'{sample}{and_more(self.num_samples - 1)}{key}{ranks}'

    def _fault(self, subject: str) -> str:
        # An interval is over when it is reported.
        verb = 'was'
        if self.since is None:
            verb = 'is'
        return f'input {verb} not finite in {subject}'

    @property
    def _remark(self) -> str:
        if not self.usual:
            return ''
        keys = ', '.join(self.usual)
        return (
            f'; {keys}: not finite in committed updates either, so that the '
            'model seems to mask it'
        )

    @property
    def _outcome(self) -> str:
        return OUTCOMES.get(self.action, self.action)
