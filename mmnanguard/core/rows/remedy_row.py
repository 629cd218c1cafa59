"""The row of a remedy that was put into effect."""

from dataclasses import dataclass
from typing import ClassVar, Tuple

from .row_record import RowRecord

__all__ = ['FP32', 'RemedyRow']

FP32 = 'fp32'  # the only remedy there is: run a module in float32


@dataclass(frozen=True)
class RemedyRow(RowRecord):
    """A change that ``Fp32ModulesHook`` made because an autopsy advised it.

    Attributes:
        id: Of the event that the autopsy was of.
        remedy: ``FP32``.
        module: Name of the module that runs in float32.
        config: The config line that makes the remedy permanent.
    """

    KIND: ClassVar[str] = 'remedy'
    NEEDED: ClassVar[Tuple[str, ...]] = ('module',)

    id: str = ''
    remedy: str = FP32
    module: str = ''
    config: str = ''

    def sentence(self) -> str:
        if self.remedy != FP32:  # of another version
            return f"remedy '{self.remedy}' for '{self.module}'"
        return f"'{self.module}' runs in float32 from now on"

    def line(self) -> str:
        """Return the console line."""
        return (
            f'mmnanguard: {self.sentence()}; to make that permanent: '
            f'{self.config}'
        )
