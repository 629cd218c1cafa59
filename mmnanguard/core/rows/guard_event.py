"""The row of an update that was not a plain step."""

import math
from dataclasses import asdict, dataclass, field
from typing import ClassVar, Mapping, Optional, Tuple

from ..bad_tensor import BadTensor
from ..causes import Cause
from ..rules.verdict import Action
from .event_words import event_line, event_sentence
from .json_numbers import JsonObject, to_jsonable
from .phrases import plural
from .row_record import NewRow, RowRecord

__all__ = ['INITIAL_ORIGIN', 'PAST_GUARD', 'PRETRAINED', 'GuardEvent']

# The keys that come first in a row, in this order.
FIRST_KEYS = (
    *('schema', 'kind', 'id', 'run', 'attempt', 'time', 'iter', 'epoch'),
    *('batch_idx', 'optimizer'),
)
PAST_GUARD = 'was called past the guard'
PRETRAINED = 'as the file of load_from already had it: '
INITIAL_ORIGIN = (
    'as before the first update (never initialized, such as torch.empty, or '
    'built so)'
)


@dataclass(frozen=True)
class GuardEvent(RowRecord):
    """An update that was not a plain STEP.

    The optimizer wrapper creates the event. ``NanGuardHook`` adds the context
    of the iteration (epoch, losses, samples, inputs). All values except for
    the enums and ``params`` are of Python's own types.

    Attributes:
        action: The action of the verdict.
        cause: The cause of the action.
        iter: Iteration, counted from 1 as in MMEngine's log lines. In a window
            of several micro-batches, the iteration that ended the window.
        epoch: Epoch, counted from 1 as in MMEngine's log lines.
        batch_idx: MMEngine's index of the batch in the epoch, from 0.
        optimizer: Key of the optimizer in the ``OptimWrapperDict``, else
            'default'.
        ranks: The ranks that saw the fault.
        loss: The loss of the window, as in ``Observation.loss``.
        losses: Parts of the loss by name.
        bad_losses: For each part of the loss that is not finite in this
            window, the number of iterations in which it was not.
        num_iters: The number of iterations that ``bad_losses`` counts, since
            the start of the process.
        grad_norm: The gradient norm, as in ``Observation.grad_norm``.
        lr: One learning rate for each parameter group.
        loss_scale: ``{'before': ..., 'after': ...}``; None without a scaler.
        scale_blamed: Whether bad gradients count as an overflow of the loss
            scale; False if evidence speaks against that.
        num_bad_params: Number of bad gradients.
        num_params: Number of gradients that were checked.
        params: A few of the bad tensors, nearest to the loss first.
        samples: Names of the samples of the window, or only of the
            micro-batches that were left out.
        bad_samples: Those of ``samples`` that are known to be bad: their
            input is not finite, a check of the data has found them, or an
            earlier row of the run blames them. Innocent samples are not
            among them.
        inputs: Range of each tensor of the batch, as the data loader returned
            it.
        watched: Range of each tensor that was passed to ``watch``.
        consecutive_skips: Number of skips in a row, including this update.
        total_skips: Number of rejected updates so far, including this
            update.
        counts: Whether this update counts toward the limits; False if its
            gradients are finite although its loss or input is not.
        routine_overflows: Number of routine overflows so far. The skips above
            do not include them.
        since: Iteration at which the present streak of skips began.
        spike: The fields of :class:`Spike`; None without a spike.
        clip_coef: Factor in (0, 1] on the gradients of a spike that was
            committed.
        lr_factor: Factor on the learning rates of this update.
        step: The optimizer whose step is to blame, or whose settings make
            weights grow (a negative weight decay): ``{'optimizer': its class,
            'settings': some arguments, 'nonfinite': the names of non-finite
            settings, 'iter': the iteration of the step}``; None otherwise.
        micro_batches: ``{'total': ..., 'left_out': [{'rank': ..., 'number':
            ..., 'iter': ...}]}`` with the micro-batches of the window on all
            ranks, numbered from 1. The rest of the event is then about the
            micro-batches that were left out. None if all were used.
        growth: The fields of ``Growth``, if losses or norms exploded
            right before this update; else None.
        origin: How bad weights became bad, as a clause; '' if that is not
            known.
        run: Name of the run.
        attempt: Number of the process start, from 1.
        id: The id of the event, unique in the attempt.
        time: Time of the event, UTC, in ISO 8601.
    """

    KIND: ClassVar[str] = 'update'

    # In the order of the row's keys, after FIRST_KEYS.
    action: Action
    cause: Cause
    iter: int
    epoch: int = 1
    batch_idx: Optional[int] = None
    optimizer: str = 'default'
    ranks: Tuple[int, ...] = (0,)
    loss: float = math.nan
    losses: Mapping[str, float] = field(default_factory=dict)
    bad_losses: Mapping[str, int] = field(default_factory=dict)
    num_iters: int = 0
    grad_norm: float = math.nan
    lr: Tuple[float, ...] = ()
    loss_scale: Optional[Mapping[str, float]] = None
    scale_blamed: bool = True
    num_bad_params: int = 0
    num_params: int = 0
    params: Tuple[BadTensor, ...] = ()
    samples: Tuple[str, ...] = ()
    bad_samples: Tuple[str, ...] = ()
    inputs: Mapping[str, JsonObject] = field(default_factory=dict)
    watched: Mapping[str, JsonObject] = field(default_factory=dict)
    consecutive_skips: int = 0
    total_skips: int = 0
    counts: bool = True
    routine_overflows: int = 0
    since: Optional[int] = None
    spike: Optional[JsonObject] = None
    clip_coef: float = 1.0
    lr_factor: float = 1.0
    step: Optional[JsonObject] = None
    micro_batches: Optional[JsonObject] = None
    growth: Optional[JsonObject] = None
    origin: str = ''
    run: str = ''
    attempt: int = 1
    id: str = ''
    time: str = ''

    @property
    def is_routine(self) -> bool:
        """Whether the cause is an expected part of training."""
        return self.cause.is_routine

    def to_row(self) -> NewRow:
        """Return a JSON-ready dict.

        Enums are their names in lower case, non-finite numbers are the
        strings 'nan', 'inf', '-inf'.
        """
        row = super().to_row()
        row.update(
            action=self.action.value,
            cause=self.cause.value,
            params=list(map(asdict, self.params)),
        )
        # A person who opens the file sees first which update a line is about.
        ordered = {key: row.pop(key) for key in FIRST_KEYS}
        result: NewRow = to_jsonable({**ordered, **row})
        return result

    @property
    def is_harmless_commit(self) -> bool:
        """Whether the update was committed in spite of its loss."""
        is_committed = self.action is Action.STEP
        return is_committed and not self.counts and self.micro_batches is None

    @property
    def bad_keys(self) -> Tuple[str, ...]:
        """The parts of the batch that were not finite, as far as is known."""
        keys = []
        for key, seen in self.inputs.items():
            # A row of another version may have any value here.
            if isinstance(seen, Mapping) and seen.get('is_finite') is False:
                keys.append(key)
        return tuple(keys)

    def line(self) -> str:
        """Return the console line, of at most 160 columns."""
        return event_line(self)

    def sentence(self) -> str:
        """Describe the update in a sentence, without the iteration."""
        return event_sentence(self)

    def bad_losses_in_words(self) -> str:
        """Return the parts of the loss that are not finite, and how often.

        Such as 'loss_bbox in 121 of 200 iterations'; '' if none is known.
        """
        parts = []
        for name, count in self.bad_losses.items():
            parts.append(f'{name} in {count}')
        if not parts:
            return ''
        iterations = plural('iteration', self.num_iters)
        return f'{", ".join(parts)} of {self.num_iters} {iterations}'
