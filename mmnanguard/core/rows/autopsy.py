"""The row of a rejected update that was run again."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Mapping, Optional, Tuple

from .row_record import RowRecord

__all__ = ['Autopsy']


@dataclass(frozen=True)
class Autopsy(RowRecord):
    """The findings of a replay of a rejected update.

    Attributes:
        id: Of the event.
        phase: 'input', 'weight', 'forward', 'loss' or 'backward'; '' if the
            replay was clean.
        module: Name of the first module that made a bad number of good ones.
        module_type: Its class.
        method: Of it, that ran; many heads run ``loss``.
        op: The operation, as ``aten.convolution``.
        source: File and line that ran it, outside of PyTorch.
        dtype: Of the operation's output.
        input_absmax: Largest finite absolute value of its inputs.
        output_absmax: The same of its output, NaN and inf inclusive.
        dtype_max: The largest finite number of that dtype.
        batch_rows: Rows of the batch that were bad there; empty if it does
            not keep rows apart.
        samples: Their names.
        rank: On which it was seen.
        repeats: The replay went bad again; else the fault is transient.
        exact: As far as is known, the replay did the very same.
        fp32_is_finite: With autocast off; None if it was off anyway.
        remedy: 'fp32' if nothing begins there once the module is in float32,
            which was tried; else ''.
        outputs: Range of the output of each top-level child.
    """

    KIND: ClassVar[str] = 'autopsy'

    id: str = ''
    phase: str = ''
    module: str = ''
    module_type: str = ''
    method: str = ''
    op: str = ''
    source: str = ''
    dtype: str = ''
    input_absmax: float = math.nan
    output_absmax: float = math.nan
    dtype_max: float = math.nan
    batch_rows: Tuple[int, ...] = ()
    samples: Tuple[str, ...] = ()
    rank: int = 0
    repeats: bool = False
    exact: bool = True
    fp32_is_finite: Optional[bool] = None
    remedy: str = ''
    outputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def line(self, iteration: int, is_compiled: bool = False) -> str:
        """Return the console line.

        Args:
            iteration: From 1.
            is_compiled: Training runs compiled code; a replay never does.
        """
        return f'Iter {iteration}: autopsy: {self.sentence(is_compiled)}'

    def sentence(self, is_compiled: bool = False) -> str:
        """Return what the replay found; see :meth:`line`."""
        if not self.repeats and is_compiled:
            return (
                'eager did not reproduce it: run again without '
                'torch.compile, the update is finite; either the fault is '
                'transient or the compiled code makes it'
            )
        if not self.repeats:
            return (
                'run again, the update is finite: the fault is '
                'transient, or in what a replay does not have (Python state, '
                'hooks that change the batch or inject the fault)'
            )
        if not self.phase:
            return 'the fault repeats; where it begins was not seen'
        parts = [self._culprit()]
        if self.fp32_is_finite is not None:
            cure = 'finite' if self.fp32_is_finite else 'no better'
            if self.fp32_is_finite and not self.remedy:
                cure = 'finite, but not by this module alone'
            parts.append(f'in float32 it is {cure}')
        parts.append('it happens again when replayed')
        return '; '.join(parts)

    def _culprit(self) -> str:
        who = 'the batch'
        if self.samples:
            more = len(self.samples) - 1
            others = f' and {more} more' if more else ''
            who = f"sample '{self.samples[0]}'{others}"
        if self.phase == 'input':
            return f'{who} is not finite to begin with'
        if self.phase == 'weight':
            return 'weights or buffers are not finite to begin with'
        is_nan = math.isnan(self.output_absmax)
        name = f"'{self.module}' " if self.module else ''
        return (
            f'{who} made {name}({self.module_type}, {self.op}, '
            f'{self.source}) {"give NaN" if is_nan else "overflow"} in '
            f'{self.dtype} in {self.phase}: its input was up to '
            f'{self.input_absmax:.3g}, the limit is {self.dtype_max:.3g}'
        )
