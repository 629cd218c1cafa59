"""The row of a remedy that was put into effect."""

from dataclasses import dataclass
from typing import ClassVar, Sequence, Tuple

from mmnanguard._support.escape import escape

from .row_record import RowRecord

__all__ = ['FP32', 'RemedyRow', 'line_of_fp32']

# The only remedy so far: run a module in float32.
FP32 = 'fp32'


@dataclass(frozen=True)
class RemedyRow(RowRecord):
    """A change that ``Fp32ModulesHook`` made because an autopsy advised it.

    Attributes:
        id: The id of the event whose autopsy advised the change.
        remedy: The kind of change, ``FP32``.
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
        # Another version may know more remedies.
        if self.remedy != FP32:
            return f"remedy '{self.remedy}' for '{self.module}'"
        return f"'{self.module}' runs in float32 from now on"

    def line(self) -> str:
        """Return the console line."""
        return escape(
            f'mmnanguard: {self.sentence()}; to make that permanent: '
            f'{self.config}'
        )


def line_of_fp32(modules: Sequence[str]) -> str:
    """Return the config line that runs modules in float32.

    It can be pasted into a config with a base, and given to
    ``train --cfg-options``.
    """
    return (
        "default_hooks=dict(fp32=dict(type='mmnanguard.Fp32ModulesHook', "
        f'modules={list(modules)!r}))'
    )
