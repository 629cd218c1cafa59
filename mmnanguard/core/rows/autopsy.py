"""The row of an autopsy: the replay of a rejected update."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Mapping, Optional, Tuple

from mmnanguard._support.escape import escape

from .json_numbers import JsonObject
from .phrases import and_more
from .row_record import RowRecord

__all__ = ['Autopsy']


@dataclass(frozen=True)
class Autopsy(RowRecord):
    """The findings of a replay of a rejected update.

    Attributes:
        id: The id of the event whose update was replayed.
        phase: 'input', 'weight', 'forward', 'loss' or 'backward'; '' if the
            replay was clean.
        module: Name of the first module that made bad numbers from good
            numbers; '' is the model itself.
        module_type: Class of the module.
        method: Method of the module that ran; many heads run ``loss``.
        op: The operation, such as ``aten.convolution``.
        source: The innermost source line outside of PyTorch that ran the
            operation.
        dtype: The dtype of the operation's output.
        input_absmax: Largest finite absolute value of the operation's inputs.
        output_absmax: Largest absolute value of the operation's output,
            including NaN and inf.
        dtype_max: The largest finite number of ``dtype``.
        batch_rows: Rows of the batch that were bad at the operation; empty if
            the operation mixes rows.
        samples: The names of the samples in these rows.
        rank: The rank that saw the fault.
        repeats: Whether the replay went bad again. Otherwise the fault is
            transient.
        exact: Whether the replay equals the update, as far as is known.
        fp32_is_finite: Whether the replay is finite with autocast off; None
            if autocast was off anyway.
        remedy: 'fp32' if no fault begins in the module once it runs in
            float32, which another replay has tried; else ''.
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
    outputs: Mapping[str, JsonObject] = field(default_factory=dict)

    def line(self, iteration: int, is_compiled: bool = False) -> str:
        """Return the console line.

        Args:
            iteration: Iteration of the update, from 1.
            is_compiled: Whether training runs compiled code. A replay never
                does.
        """
        story = self.sentence(is_compiled)
        return escape(f'Iter {iteration}: autopsy: {story}')

    def sentence(self, is_compiled: bool = False) -> str:
        """Describe the findings of the replay.

        Args:
            is_compiled: Whether training runs compiled code.
        """
        # A replay runs eagerly, because a dispatch mode does not see the
        # operations inside of compiled code.
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
            outcome = 'no better'
            if self.fp32_is_finite:
                outcome = 'finite'
                # The remedy was tried on this module only, and failed.
                if not self.remedy:
                    outcome += ', but not by this module alone'
            parts.append(f'in float32 it is {outcome}')
        parts.append('it happens again when replayed')
        return '; '.join(parts)

    def _culprit(self) -> str:
        """Describe where the fault begins."""
        who = 'the batch'
        if self.samples:
            others = and_more(len(self.samples) - 1)
            who = f"sample '{self.samples[0]}'{others}"
        if self.phase == 'input':
            return f'{who} is not finite to begin with'
        if self.phase == 'weight':
            return 'weights or buffers are not finite to begin with'
        verb = 'overflow'
        # Finite inputs give NaN by an invalid operation, such as sqrt(-1).
        if math.isnan(self.output_absmax):
            verb = 'give NaN'
        name = ''
        if self.module:
            name = f"'{self.module}' "
        return (
            f'{who} made {name}({self.module_type}, {self.op}, '
            f'{self.source}) {verb} in {self.dtype} in {self.phase}: its '
            f'input was up to {self.input_absmax:.3g}, the limit is '
            f'{self.dtype_max:.3g}'
        )
