"""The row of an autopsy: the replay of a rejected update."""

import math
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Mapping, Optional, Tuple

from ..undefined_operations import known_fault
from .autopsy_line import autopsy_line, autopsy_sentence
from .json_numbers import JsonObject
from .phrases import and_more
from .row_record import RowRecord

__all__ = ['CURES', 'GRADS', 'Autopsy']

# Not a cure, but it shows whether gradients overflowed beside a bad loss.
GRADS = 'lower_scale_grads'
# The cures that a replay tries, in words.
CURES: Mapping[str, str] = MappingProxyType(
    {
        'module_fp32': 'float32 for this module',
        'fp32': 'float32',
        'bfloat16': 'bfloat16',
        'lower_scale': 'the lowest loss scale',
        GRADS: 'gradients at the lowest loss scale',
        'without_samples': 'without these samples',
    }
)

LOG_SUMS = ('.logsumexp', '.logaddexp', '.logcumsumexp')
DIVISIONS = ('.div', '.div_', '.reciprocal', '.reciprocal_')


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
        op: The operation, such as ``aten.convolution``. In the phase 'input',
            the operation of the backward pass that made NaN or Inf of a bad
            input although the loss is finite; '' if the loss is not.
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
        is_pole: Whether the operation is not finite in float64 either, as
            log(0) or 1/0, so that no dtype helps; None if that is not known.
        operands: The numbers of which the operation made its first bad
            element; empty if they are not known.
        num_samples: Number of samples in the window; 0 if it is not known.
        keys: The parts of the batch that were not finite. If the replay was
            finite all the same, the model may mask them. For the phase
            'weight', the parameter or buffer that the fault begins with; for
            later phases, the plain attribute of a module that holds a bad
            tensor from an earlier batch.
        tried: The cures that another replay has tried, and whether it was
            finite, see ``CURES``.
        mask: The operation and the line that wrote Inf or NaN on request,
            such as a mask of -inf, which then met the operation or the loss;
            '' if no mask is involved.
        derivative: In a backward pass, the operation of the forward pass
            whose derivative the operation computes, such as 'sqrt', or the
            node of an autograd.Function of Python, such as 'MixBackward';
            else ''.
        huge_weight: A parameter that holds numbers above 1e6, if the
            operation got such numbers; else ''.
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
    is_pole: Optional[bool] = None
    operands: Tuple[float, ...] = ()
    num_samples: int = 0
    keys: Tuple[str, ...] = ()
    tried: Mapping[str, bool] = field(default_factory=dict)
    mask: str = ''
    derivative: str = ''
    huge_weight: str = ''

    @property
    def is_certain(self) -> bool:
        """Whether the operation met a pole or a mask, which is no overflow."""
        return bool(self.is_pole or self.mask)

    @property
    def is_rounding(self) -> bool:
        """Whether float16 or bfloat16 rounded a number onto a pole.

        An epsilon of 1e-12 is 0 in float16, and 1 - 1e-4 is 1. In float32,
        which was tried, the operation is finite.
        """
        is_half = self.dtype in ('float16', 'bfloat16')
        is_finite = self.tried.get('fp32', self.fp32_is_finite)
        return is_half and bool(self.is_pole and is_finite)

    @property
    def is_left_out(self) -> bool:
        """Whether the loss leaves out what only its derivative meets.

        Bad elements of the inputs, or a mask of Inf that the model makes.
        """
        if self.phase == 'input':
            return bool(self.op)
        return self.phase == 'backward' and bool(self.mask)

    @property
    def is_own_backward(self) -> bool:
        """Whether an autograd.Function of Python computed it in backward."""
        return self.derivative.endswith('Backward')

    @property
    def is_kept(self) -> bool:
        """Whether the bad numbers are in a tensor that nothing computed now.

        Another autopsy names the operation that made them, if any.
        """
        is_of_model = self.phase in ('forward', 'loss', 'backward')
        return is_of_model and not self.op and self.input_absmax == 0

    def line(self, iteration: int, is_compiled: bool = False) -> str:
        """Return the console line, of at most 160 columns.

        Args:
            iteration: Iteration of the update, from 1.
            is_compiled: Whether training runs compiled code. A replay never
                does.
        """
        return autopsy_line(self, iteration, is_compiled)

    def sentence(self, is_compiled: bool = False) -> str:
        """Describe the findings of the replay.

        Args:
            is_compiled: Whether training runs compiled code.
        """
        return autopsy_sentence(self, is_compiled)

    def tried_in_words(self) -> str:
        """Return the cures that were tried, with their outcomes, or ''."""
        outcomes = []
        for words, is_finite in self.outcomes().items():
            outcome = 'finite' if is_finite else 'still NaN or Inf'
            outcomes.append(f'{words}: {outcome}')
        if not outcomes:
            return ''
        return f'tried: {", ".join(outcomes)}'

    def outcomes(self) -> Mapping[str, bool]:
        """Return whether the replay was finite, by cure in words."""
        tried = dict(self.tried)
        # Rows of 0.1 have these two outcomes only.
        is_of_model = self.phase not in ('input', 'weight')
        if is_of_model and self.fp32_is_finite is not None:
            tried.setdefault('fp32', self.fp32_is_finite)
        if self.remedy and self.module:
            tried.setdefault('module_fp32', True)
        # That gradients are bad beside a bad loss is no news.
        if not tried.get(GRADS, True):
            del tried[GRADS]
        return {CURES[cure]: tried[cure] for cure in CURES if cure in tried}

    def place(self) -> str:
        """Return module, operation and source line, such as they are known."""
        op = self.op
        # A division of 0 by 0 is in the derivative of a root.
        if self.is_pole and self.derivative:
            op = f'derivative of {self.derivative}'
            if self.is_own_backward:
                op = f'{self.op} in {self.derivative}'
        parts = filter(None, (self.module_type, op, self.source))
        # The root module has the name ''.
        name = f"'{self.module}'" if self.module else 'the model itself'
        return f'{name} ({", ".join(parts)})'

    def finding(self) -> str:
        """Describe where the fault begins; '' if that is not known."""
        if self.phase == 'input':
            return self._bad_input()
        if self.phase == 'weight':
            names = ''
            if self.keys:
                names = f': {", ".join(map(repr, self.keys))}'
            return f'weights or buffers are not finite to begin with{names}'
        if not self.phase:
            return ''
        if self.is_kept:
            return f'{self.place()} {self.kept()}'
        where = f'in {self.dtype} in {self.phase}'
        if self.is_certain:
            return f'{self.place()} {self.pole()} {where}{self._of_samples()}'
        who = 'the batch'
        # Without them, the rest of the batch may be bad as well.
        if self.samples and self.tried.get('without_samples', True):
            who = self.named_samples()
        verb = 'overflow'
        # Finite inputs give NaN by an invalid operation, such as sqrt(-1).
        if math.isnan(self.output_absmax):
            verb = 'give NaN'
        return f'{who} made {self.place()} {verb} {where}: {self.overflow()}'

    def kept(self) -> str:
        """Describe a tensor that was bad before anything was computed."""
        tensor = 'a tensor that it did not compute'
        if self.keys:
            names = ', '.join(map(repr, self.keys))
            tensor = f'{names}, a plain attribute of the model'
        return f'uses {tensor}, which is not finite to begin with'

    def overflow(self) -> str:
        """Describe the numbers of an overflow."""
        if not self.call():
            return (
                f'its input was up to {self.input_absmax:.3g}, the limit is '
                f'{self.dtype_max:.3g}'
            )
        words = f'{self.call()} is beyond {self.dtype_max:.3g}'
        if self.is_near_pole:
            words += f', as {self.operands[-1]:.3g} is next to its pole at 0'
        return words

    @property
    def is_all_masked(self) -> bool:
        """Whether a logsumexp, or its derivative, got nothing but -inf."""
        if self.mask:
            return self.op.endswith(LOG_SUMS) and not self.derivative
        is_inf = bool(self.operands) and not any(
            map(math.isfinite, self.operands)
        )
        return self.derivative in ('logsumexp', 'logaddexp') and is_inf

    @property
    def is_near_pole(self) -> bool:
        """Whether the operation divided by a number that is almost 0."""
        if not self.op.endswith(DIVISIONS) or not self.call():
            return False
        return abs(self.operands[-1]) * math.sqrt(self.dtype_max) < 1

    def call(self) -> str:
        """Return the call that overflowed, as 'exp(200)'; '' if unknown."""
        is_known = self.operands and all(map(math.isfinite, self.operands))
        if not is_known or math.isnan(self.output_absmax):
            return ''
        numbers = ', '.join(map('{:.3g}'.format, self.operands))
        return f'{self.op.split(".")[-1]}({numbers})'

    def _bad_input(self) -> str:
        who = 'the batch'
        if self.samples:
            who = self.named_samples()
        keys = ''
        if self.keys:
            keys = f' in {", ".join(map(repr, self.keys))}'
        finding = f'{who} is not finite to begin with{keys}'
        if self.op:
            finding += (
                '; the loss is finite all the same, but the derivative of '
                f'{self.derivative} at {self.source} is not'
            )
        return finding

    def pole(self) -> str:
        """Describe an operation that no dtype can make finite."""
        call = 'its input'
        if self.operands:
            numbers = ', '.join(map(in_words, self.operands))
            call = f'{self.op.split(".")[-1]}({numbers})'
        if self.is_all_masked:
            return 'got nothing but -inf'
        if self.mask and not self.is_pole:
            return 'writes Inf or NaN as a mask, which reaches the loss,'
        if self.mask:
            return f'meets a mask of Inf ({self.mask}) at {call}'
        if not all(map(math.isfinite, self.operands)):
            return f'got a number that is not finite, {call},'
        known = known_fault(self.op)
        if known is not None and self.phase != 'backward':
            return known.reason.partition(':')[0]
        # 0/0 is a pole as well; log(-1) and a softmax of -inf alone are not.
        if math.isnan(self.output_absmax) and 0.0 not in self.operands:
            return f'is not defined at {call}'
        return f'has a pole at {call}'

    def _of_samples(self) -> str:
        if not self.samples:
            return ''
        share = ''
        if self.num_samples:
            share = f' ({len(self.samples)} of {self.num_samples})'
        return f', for {self.named_samples()}{share}'

    def named_samples(self) -> str:
        """Return the first sample, and the number of the others."""
        others = and_more(len(self.samples) - 1)
        return f"sample '{self.samples[0]}'{others}"


def in_words(operand: float) -> str:
    """Return a number in three digits, or in more if it is almost 1 or -1."""
    words = f'{operand:.3g}'
    if words in ('1', '-1'):
        return f'{operand:.9g}'
    return words
