"""The row that a process writes when its training ends."""

from dataclasses import dataclass, field
from itertools import chain
from typing import ClassVar, Mapping, Optional, Tuple

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
