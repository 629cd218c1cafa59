"""The row of a remedy that was put into effect."""

from dataclasses import dataclass
from typing import ClassVar, Optional, Sequence, Tuple

from mmnanguard._support.console_line import fit, named

from .row_record import RowRecord

__all__ = ['FP32', 'LR', 'SCALE', 'RemedyRow', 'line_of_fp32', 'line_of_lr']

# The remedies: run a module in float32, raise the loss scale, and multiply
# the learning rates.
FP32 = 'fp32'
SCALE = 'scale'
LR = 'lr'


@dataclass(frozen=True)
class RemedyRow(RowRecord):
    """A change of the run that an autopsy or an alert advised.

    ``Fp32ModulesHook`` and ``StabilityMonitorHook`` make such changes.

    Attributes:
        id: The id of the event or alert that advised the change.
        remedy: The kind of change: 'fp32', 'scale' or 'lr'.
        module: Name of the module that runs in float32; '' for other changes.
        config: The config line that makes the remedy permanent; for a loss
            scale or a rate, of a new run.
        value: The new loss scale, or the factor on the learning rates.
    """

    KIND: ClassVar[str] = 'remedy'
    NEEDED: ClassVar[Tuple[str, ...]] = ('module',)

    id: str = ''
    remedy: str = FP32
    module: str = ''
    config: str = ''
    value: Optional[float] = None

    def sentence(self) -> str:
        if self.remedy == FP32:
            return f"'{self.module}' runs in float32 from now on"
        if self.remedy == SCALE and self.value is not None:
            return f'the loss scale is {self.value:g} from now on'
        if self.remedy == LR and self.value is not None:
            return f'learning rates are times {self.value:g} from now on'
        # Another version may know more remedies.
        return f"remedy '{self.remedy}' for '{self.module}'"

    def line(self) -> str:
        """Return the console line, of at most 160 columns."""
        when = 'to make that permanent'
        # The state of a resumed run has these changes already.
        if self.remedy in (SCALE, LR):
            when = 'resumed runs keep it; for a new run'
        start, word = 'mmnanguard: ', self.remedy.replace('fp32', 'float32')
        # The line for the config names the module, too.
        return fit(
            [
                f'{start}{self.sentence()}; {when}: {self.config}',
                f'{start}{word} from now on; {when}: {self.config}',
                *named(
                    f"{start}'{{}}': {word} from now on; its row has "
                    'the config line',
                    self.module,
                ),
            ]
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


def line_of_lr(factor: float) -> str:
    """Return the config line that multiplies all learning rates."""
    return (
        "default_hooks=dict(lr_factor=dict(type='mmnanguard.LrFactorHook', "
        f'factor={factor:g}))'
    )
