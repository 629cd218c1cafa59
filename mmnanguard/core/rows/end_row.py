"""The row that a process writes when its training ends."""

from dataclasses import dataclass, field
from itertools import chain
from typing import ClassVar, Mapping, Optional, Tuple

from mmnanguard._support.console_line import NAME_WIDTHS, fit, shorten_name

from .phrases import and_more, samples_in_words
from .row_record import RowRecord

__all__ = ['CRASHED', 'FINISHED', 'INTERRUPTED', 'EndRow']

FINISHED = 'finished'
CRASHED = 'crashed'
INTERRUPTED = 'interrupted'


@dataclass(frozen=True)
class EndRow(RowRecord):
    """The end of an attempt that the guard did not halt.

    A process that was killed writes no such row.

    Attributes:
        how: 'finished', 'crashed' for an exception, or 'interrupted' for
            Ctrl-C.
        iter: The iteration at which training ended, from 1.
        error: Type and first line of the exception; '' without one.
        first_losses: The loss of the run's first updates, by optimizer.
        last_losses: The loss of its last updates.
        bad_params: A few trained parameters that were not finite when an
            exception ended an iteration.
        bad_inputs: The parts of its batch that were not finite, and the
            names of their samples.
    """

    KIND: ClassVar[str] = 'end'
    NEEDED: ClassVar[Tuple[str, ...]] = ('how',)

    how: str = ''
    iter: Optional[int] = None
    error: str = ''
    first_losses: Mapping[str, float] = field(default_factory=dict)
    last_losses: Mapping[str, float] = field(default_factory=dict)
    bad_params: Tuple[str, ...] = ()
    bad_inputs: Mapping[str, Tuple[str, ...]] = field(default_factory=dict)

    def sentence(self) -> str:
        if self.iter is None:
            return self.how
        sentence = f'{self.how} at iteration {self.iter:,}'
        if self.error:
            sentence += f' by {self.error}'
        bad = self.bad_numbers()
        if bad:
            sentence = f'{sentence.rstrip(":")}; {bad}'
        return sentence

    def line(self) -> str:
        """Return the console line about the bad numbers of a crash."""
        start = f'mmnanguard: Iter {self.iter}: in the iteration that crashed'
        forms = [f'{start}, {self.bad_numbers()}']
        for width in NAME_WIDTHS:
            brief = self.shortened(width).bad_numbers()
            forms.append(f'{start}, {brief}')
        return fit(forms)

    def shortened(self, width: int) -> 'EndRow':
        """Return the row with a bad key, and names of limited width."""
        params = [shorten_name(name, width) for name in self.bad_params]
        inputs = {}
        for key, names in list(self.bad_inputs.items())[:1]:
            # Both samples that a sentence names have to fit.
            short = [shorten_name(name, width) for name in names]
            inputs[shorten_name(key, width)] = tuple(short)
        return self.replace(bad_params=tuple(params), bad_inputs=inputs)

    def bad_numbers(self) -> str:
        """Describe the bad numbers that the iteration met; '' without any."""
        if self.bad_params:
            first, *others = self.bad_params
            return f"parameter '{first}'{and_more(len(others))} is NaN or Inf"
        if not self.bad_inputs:
            return ''
        keys = ', '.join(map(repr, self.bad_inputs))
        whose = 'its batch'
        if self.samples:
            whose = samples_in_words(self.samples)
        return f'{keys} of {whose} is NaN or Inf'

    @property
    def samples(self) -> Tuple[str, ...]:
        """The samples whose parts were not finite, each once."""
        return tuple(
            dict.fromkeys(chain.from_iterable(self.bad_inputs.values()))
        )
