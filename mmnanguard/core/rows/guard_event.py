"""The row of an update that was not a plain step."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Dict, Mapping, Optional, Tuple

from ..bad_tensor import BadTensor
from ..causes import CAUSES, UNKNOWN, Cause
from ..rules.verdict import Action
from .json_numbers import to_jsonable
from .row_record import RowRecord

__all__ = ['GuardEvent']

# In a row they come first, in this order.
FIRST_KEYS = (
    *('schema', 'kind', 'id', 'run', 'attempt', 'time', 'iter', 'epoch'),
    *('batch_idx', 'optimizer'),
)


@dataclass(frozen=True)
class GuardEvent(RowRecord):
    """One update that was not a plain STEP; plain builtins only.

    The wrapper fills in what it knows; ``NanGuardHook`` adds the iteration's
    context (epoch, losses, samples, inputs).

    Attributes:
        action: What was done.
        cause: Why.
        iter: Counts from 1, as MMEngine's log lines do. In a window of
            several micro-batches: the iteration that ended it.
        epoch: Counts from 1, as MMEngine's log lines do.
        batch_idx: MMEngine's index in the epoch, counts from 0.
        optimizer: Key in the ``OptimWrapperDict``, else 'default'.
        ranks: Where something was wrong.
        loss: See ``Observation.loss``.
        losses: Parts of the loss by name.
        grad_norm: See ``Observation.grad_norm``.
        lr: One per parameter group.
        loss_scale: ``{'before': ..., 'after': ...}``; None without a scaler.
        num_bad_params: Of ``num_params`` gradients that were looked at.
        params: A few of the bad tensors, nearest to the loss first.
        samples: Of the whole window, or of what was left out of it.
        inputs: Range of each tensor of the batch, as the data loader gave it.
        watched: Range of each watched tensor.
        since: Iteration at which the present streak of skips began.
        spike: What was too large, its value, limit and usual mean.
        clip_coef: Of a spike that was committed; in (0, 1].
        lr_factor: By which that update's learning rates were multiplied.
        micro_batches: ``{'total': ..., 'left_out': [{'rank': ..., 'number':
            ...}]}`` of a window, on all ranks, numbers from 1; the rest of
            the event is then about those. None if none was left out.
    """

    KIND: ClassVar[str] = 'update'

    action: Action
    cause: Cause
    iter: int
    epoch: int = 1
    batch_idx: Optional[int] = None
    optimizer: str = 'default'
    ranks: Tuple[int, ...] = (0,)
    loss: float = math.nan
    losses: Mapping[str, float] = field(default_factory=dict)
    grad_norm: float = math.nan
    lr: Tuple[float, ...] = ()
    loss_scale: Optional[Mapping[str, float]] = None
    num_bad_params: int = 0
    num_params: int = 0
    params: Tuple[BadTensor, ...] = ()
    samples: Tuple[str, ...] = ()
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    watched: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    consecutive_skips: int = 0
    total_skips: int = 0
    routine_overflows: int = 0
    since: Optional[int] = None
    spike: Optional[Mapping[str, Any]] = None
    clip_coef: float = 1.0
    lr_factor: float = 1.0
    micro_batches: Optional[Mapping[str, Any]] = None
    run: str = ''
    attempt: int = 1
    id: str = ''
    time: str = ''

    @property
    def is_routine(self) -> bool:
        return self.cause.is_routine

    def to_row(self) -> Dict[str, Any]:
        """Return a JSON-ready dict.

        Enums are their names in lower case, non-finite numbers are the
        strings 'nan', 'inf', '-inf'.
        """
        row = super().to_row()
        row.update(
            action=self.action.value,
            cause=self.cause.value,
            params=[asdict(bad) for bad in self.params],
        )
        keys = [*FIRST_KEYS, *(key for key in row if key not in FIRST_KEYS)]
        ordered: Dict[str, Any] = to_jsonable({key: row[key] for key in keys})
        return ordered

    def line(self) -> str:
        """Return the console line."""
        where = '' if self.optimizer == 'default' else f' ({self.optimizer})'
        return f'Iter {self.iter}{where}: {self.sentence()}'

    def sentence(self) -> str:
        parts = [f'{self._blame()}; {self._done()}']
        if self.samples:
            more = len(self.samples) - 1
            parts.append(
                f'samples: {self.samples[0]}'
                + (f' and {more} more' if more else '')
            )
        return '; '.join(parts)

    def _blame(self) -> str:
        """Say what went wrong, in the words of the cause."""
        return CAUSES.get(self.cause, UNKNOWN).line.format(**self._words())

    def _words(self) -> Dict[str, Any]:
        """Return the words that a ``CauseFacts.line`` may use."""
        name, kind, tensor = 'a parameter', 'bad', ''
        if self.params:
            first = self.params[0]
            name, kind = f"'{first.name}'", first.kind_in_words
            tensor = first.tensor
        more = len(self.params) - 1
        of_all = f'{self.num_bad_params} of {self.num_params} tensors'
        gradients = f', and so are gradients ({of_all})'
        spike = self.spike or _NO_SPIKE
        usual = f', its mean {spike["mean"]:.4g}'
        return {
            'name': name,
            'kind': kind,
            'tensor': 'buffer' if tensor == 'buffer' else 'weight',
            'others': f' and {more} more are bad' if more > 0 else '',
            'of_all': of_all,
            'loss': self.loss,
            'loss_kind': 'NaN' if math.isnan(self.loss) else 'Inf',
            'gradients': gradients
            if self.num_bad_params
            else ' while its gradients are finite',
            'what': str(spike['what']).replace('grad_', 'gradient '),
            'value': spike['value'],
            'limit': spike['limit'],
            'mean': spike['mean'],
            'usual': '' if math.isnan(spike['mean']) else usual,
        }

    def _done(self) -> str:
        """Says what became of the update and the scale."""
        if self.action is Action.STEP and self.micro_batches is None:
            return (
                f'update committed, gradients x {self.clip_coef:.4g}, '
                f'learning rate x {self.lr_factor:.4g}'
            )
        parts = [
            {
                Action.STEP: 'the others made the update',
                Action.HALT: 'training halts, nothing was updated',
                Action.ROLLBACK: 'training goes back to an earlier state',
            }.get(self.action, 'update skipped')
        ]
        if self.micro_batches is not None:
            num = len(self.micro_batches['left_out'])
            total = self.micro_batches['total']
            parts.insert(0, f'{num} of {total} micro-batches left out')
        if self.loss_scale is not None:
            before, after = (
                self.loss_scale['before'],
                self.loss_scale['after'],
            )
            parts.append(
                f'loss scale stays at {before:g}'
                if before == after
                else f'loss scale {before:g} -> {after:g}'
            )
        if self.action is Action.STEP:
            return ', '.join(parts)
        if self.is_routine:
            parts.append(
                f'routine for a new scale, {self.routine_overflows} so far'
            )
        else:
            skips = 'skip' if self.consecutive_skips == 1 else 'skips'
            parts.append(f'{self.consecutive_skips} {skips} in a row')
        return ', '.join(parts)


_NO_SPIKE: Mapping[str, Any] = {
    'what': 'value',
    'value': math.nan,
    'limit': math.nan,
    'mean': math.nan,
}
