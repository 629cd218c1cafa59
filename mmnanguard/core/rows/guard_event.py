"""The row of an update that was not a plain step."""

import math
from dataclasses import asdict, dataclass, field
from typing import ClassVar, Dict, Mapping, Optional, Tuple

from mmnanguard._support.escape import escape

from ..bad_tensor import BadTensor
from ..causes import CAUSES, UNKNOWN, Cause
from ..rules.verdict import Action
from .json_numbers import JsonObject, to_jsonable
from .phrases import and_more, plural, ranks_in_words
from .row_record import NewRow, RowRecord

__all__ = [
    'INITIAL_ORIGIN',
    'PAST_GUARD',
    'PRETRAINED',
    'GuardEvent',
    'stepper_in_words',
]

# The keys that come first in a row, in this order.
FIRST_KEYS = (
    *('schema', 'kind', 'id', 'run', 'attempt', 'time', 'iter', 'epoch'),
    *('batch_idx', 'optimizer'),
)
OUTCOMES = {
    # Used only if micro-batches were left out; any other commit has its own
    # sentence.
    Action.STEP: 'the others made the update',
    Action.SKIP: 'update skipped',
    Action.HALT: 'training halts, nothing was updated',
    # Whether training goes back is decided later, and has its own line.
    Action.ROLLBACK: 'update skipped, a rollback is considered',
}

UNKNOWN_ORIGIN = 'which happened outside any guarded update'
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
        """Return the console line."""
        where = []
        # The only optimizer of a run needs no name.
        if self.optimizer != 'default':
            where.append(self.optimizer)
        # (0,) is also the value of every run on a single rank.
        if self.ranks != (0,):
            where.append(ranks_in_words(self.ranks))
        words = ''
        if where:
            words = f' ({", ".join(where)})'
        return escape(f'Iter {self.iter}{words}: {self.sentence()}')

    def sentence(self) -> str:
        sentence = self._fault()
        keys = ', '.join(map(repr, self.bad_keys))
        if keys and not self.is_routine:
            sentence += f'; {keys} of its batch is not finite'
        sentence += f'; {self._outcome()}'
        if self.samples:
            others = and_more(len(self.samples) - 1)
            sentence += f'; samples: {self.samples[0]}{others}'
        return sentence

    def _fault(self) -> str:
        """Describe what went wrong, in the words of the cause."""
        # A row may claim the cause 'none'.
        template = CAUSES.get(self.cause, UNKNOWN).line
        # Templates name only some of these words.
        return template.format(
            loss=self.loss,
            of_all=self._bad_of_all(),
            origin=self.origin or UNKNOWN_ORIGIN,
            **self._tensor_words(),
            **self._loss_words(),
            **self._spike_words(),
            **self._step_words(),
        )

    def _bad_of_all(self) -> str:
        return f'{self.num_bad_params} of {self.num_params} tensors'

    def _tensor_words(self) -> Dict[str, str]:
        """Return the words about bad tensors."""
        # A row of another version may name no tensor.
        name, kind, tensor = 'a parameter', 'bad', 'weight'
        if self.params:
            first = self.params[0]
            name, kind = f"'{first.name}'", first.kind_in_words
            if first.tensor in TENSOR_WORDS:
                tensor = TENSOR_WORDS[first.tensor]
        others = and_more(len(self.params) - 1)
        if others:
            others += ' are bad'
        return {'name': name, 'kind': kind, 'tensor': tensor, 'others': others}

    def _loss_words(self) -> Dict[str, str]:
        """Return the words about a loss that is not finite."""
        kind = 'Inf'
        if math.isnan(self.loss):
            kind = 'NaN'
        # loss + inf is Inf, and its gradients are fine.
        gradients = ' while its gradients are finite'
        if self.num_bad_params:
            gradients = f', and so are gradients ({self._bad_of_all()})'
        parts = ''
        # That the loss is bad is said already.
        if not self.counts or set(self.bad_losses) != {'loss'}:
            parts = self.bad_losses_in_words()
        if parts:
            parts = f': {parts}'
        return {'loss_kind': kind, 'gradients': gradients, 'parts': parts}

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

    def _spike_words(self) -> JsonObject:
        """Return the words and numbers about a spike or a divergence."""
        spike = self.spike or NO_SPIKE
        usual = ''
        # The mean is NaN if the limit is a fixed number.
        if not math.isnan(spike['mean']):
            usual = f', its mean {spike["mean"]:.4g}'
        return {
            'what': str(spike['what']).replace('grad_', 'gradient '),
            'value': spike['value'],
            'limit': spike['limit'],
            'mean': spike['mean'],
            'usual': usual,
        }

    def _step_words(self) -> Dict[str, str]:
        """Return the words about the step of an optimizer."""
        step = self.step or {}
        fault = 'made NaN or Inf of finite gradients and was undone'
        if step.get('nonfinite'):
            fault = f'is refused: {", ".join(step["nonfinite"])}'
        elif self.params:
            words = self._tensor_words()
            fault = (
                f'made {words["kind"]} of finite gradients in '
                f'{words["tensor"]} {words["name"]}'
                f'{and_more(len(self.params) - 1)} and was undone'
            )
        return {
            'stepper': stepper_in_words(step),
            'step_fault': fault,
            'step_iter': str(step.get('iter', 'before')),
        }

    def _outcome(self) -> str:
        """Describe the fate of the update and of the loss scale."""
        is_committed = self.action is Action.STEP
        if self.is_harmless_commit:
            return 'update committed, as without a guard'
        if is_committed and self.micro_batches is None:
            return (
                f'update committed, gradients x {self.clip_coef:.4g}, '
                f'learning rate x {self.lr_factor:.4g}'
            )
        parts = []
        if self.micro_batches is not None:
            num = len(self.micro_batches['left_out'])
            total = self.micro_batches['total']
            parts.append(f'{num} of {total} micro-batches left out')
        parts.append(OUTCOMES[self.action])
        if self.loss_scale is not None:
            parts.append(self._scale_words(self.loss_scale))
        # A commit ends the streak.
        if not is_committed:
            parts.append(self._count_words())
        return ', '.join(parts)

    def _scale_words(self, loss_scale: Mapping[str, float]) -> str:
        before, after = loss_scale['before'], loss_scale['after']
        # The scale stays at its floor, and for causes that it cannot cure.
        is_plain = self.scale_blamed or not math.isfinite(self.loss)
        if before == after and is_plain:
            return f'loss scale stays at {before:g}'
        if before == after:
            return (
                f'loss scale stays at {before:g}: it is not the likely cause'
            )
        words = f'loss scale {before:g} -> {after:g}'
        if before < after and not self.scale_blamed:
            words += ' again: lowering it did not help'
        return words

    def _count_words(self) -> str:
        # A routine overflow is no part of a streak.
        if self.is_routine:
            return f'routine for a new scale, {self.routine_overflows} so far'
        if not self.counts:
            return (
                f'counts toward no limit, {self.total_skips} rejected so far'
            )
        skips = plural('skip', self.consecutive_skips)
        return f'{self.consecutive_skips} {skips} in a row'


def stepper_in_words(step: JsonObject) -> str:
    """Return the optimizer of a step and some of its settings."""
    settings = []
    for key, value in step.get('settings', {}).items():
        settings.append(f'{key}={shorten(value)}')
    stepper = str(step.get('optimizer', 'the optimizer'))
    if settings:
        stepper += f' with {", ".join(settings)}'
    return stepper


def shorten(value: object) -> str:
    """Return a setting as short as a user would write it."""
    if isinstance(value, float):
        return f'{value:g}'
    if isinstance(value, (list, tuple)):
        return f'({", ".join(map(shorten, value))})'
    return str(value)


# The word for a bad tensor that is no weight, by ``BadTensor.tensor``.
TENSOR_WORDS = {'buffer': 'buffer', 'optimizer': 'state'}
# A row with the cause 'spike' may lack its spike.
NO_SPIKE: JsonObject = {
    'what': 'value',
    'value': math.nan,
    'limit': math.nan,
    'mean': math.nan,
}
