"""An event of an update in words: a sentence, and the line of a console.

Both have the same clauses in the same order: what happened, the samples that
are known to be bad, what became of the update, and the other samples. The
line has shorter forms of them where it would be longer than the console.
"""

import math
from typing import (
    TYPE_CHECKING,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Sequence,
    Tuple,
)

from mmnanguard._support.console_line import (
    NAME_WIDTHS,
    WIDTH,
    columns,
    fit,
    named,
    shorten_name,
)
from mmnanguard._support.escape import escape

from ..causes import CAUSES, UNKNOWN
from ..rules.verdict import Action
from .json_numbers import JsonObject
from .phrases import and_more, plural, ranks_in_words

if TYPE_CHECKING:
    from .guard_event import GuardEvent

__all__ = ['event_line', 'event_sentence', 'full_line', 'stepper_in_words']

UNKNOWN_ORIGIN = 'which happened outside any guarded update'
OUTCOMES = {
    # Used only if micro-batches were left out; any other commit has its own
    # sentence.
    Action.STEP: 'the others made the update',
    Action.SKIP: 'update skipped',
    Action.HALT: 'training halts, nothing was updated',
    # Whether training goes back is decided later, and has its own line.
    Action.ROLLBACK: 'update skipped, a rollback is considered',
}
BRIEF_OUTCOMES = {
    Action.STEP: 'update committed',
    Action.SKIP: 'update skipped',
    Action.HALT: 'training halts',
    Action.ROLLBACK: 'rollback considered',
}
# The word for a bad tensor that is no weight, by ``BadTensor.tensor``.
TENSOR_WORDS = {'buffer': 'buffer', 'optimizer': 'state'}
# A row with the cause 'spike' may lack its spike.
NO_SPIKE: JsonObject = {
    'what': 'value',
    'value': math.nan,
    'limit': math.nan,
    'mean': math.nan,
}


def event_sentence(event: 'GuardEvent') -> str:
    """Describe an event in a sentence, without the iteration."""
    first = [next(iter(clause)) for clause in clauses_of(event)]
    return '; '.join(filter(None, first))


def event_line(event: 'GuardEvent') -> str:
    """Return the console line of an event."""
    line = full_line(event)
    if columns(line) <= WIDTH:
        return line
    forms, *others = clauses_of(event)
    fault, where = list(forms), places(event)
    first = [f'Iter {event.iter}{where[0]}: {text}' for text in fault]
    first.append(f'Iter {event.iter}{where[-1]}: {fault[-1]}')
    # A reader who knows the sample needs no tensor.
    return fit(first, *others, first=(1,))


def full_line(event: 'GuardEvent') -> str:
    """Return the line of an event with all its words, of any length."""
    return escape(
        f'Iter {event.iter}{places(event)[0]}: {event_sentence(event)}'
    )


def clauses_of(event: 'GuardEvent') -> List[Iterable[str]]:
    """Return the clauses of an event, each from full to short."""
    keys = ''
    if event.bad_keys and not event.is_routine:
        listed = ', '.join(map(repr, event.bad_keys))
        keys = f'{listed} of its batch is not finite'
    return [
        fault_forms(event),
        sample_forms(event),
        [keys, ''],
        outcome_forms(event),
        [other_samples(event), ''],
    ]


def places(event: 'GuardEvent') -> Tuple[str, str]:
    """Return optimizer and ranks of an event in words, full and short."""
    where, brief = [], []
    # The only optimizer of a run needs no name.
    if event.optimizer != 'default':
        where.append(event.optimizer)
        brief.append(shorten_name(event.optimizer, NAME_WIDTHS[-1]))
    # (0,) is also the value of every run on a single rank.
    if event.ranks != (0,):
        where.append(ranks_in_words(event.ranks))
        brief.append(where[-1])
    if not where:
        return '', ''
    return f' ({", ".join(where)})', f' ({", ".join(brief)})'


def sample_forms(event: 'GuardEvent') -> Iterator[str]:
    """Yield the samples that are known to be bad, from many to one.

    The only sample of a window is named too, as there is no other.
    """
    names = event.bad_samples
    if not names and len(event.samples) == 1:
        yield from named("sample '{}'", event.samples[0])
        return
    if not names:
        yield ''
        return
    # At most five, as the row has all of them.
    for num in range(min(5, len(names)), 0, -1):
        listed = ', '.join(f"'{name}'" for name in names[:num])
        noun = plural('sample', len(names))
        yield f'bad {noun} {listed}{and_more(len(names) - num)}'
    others = and_more(len(names) - 1)
    yield from named(f"bad {noun} '{{}}'{others}", names[0])


def other_samples(event: 'GuardEvent') -> str:
    """Return the number of the samples, if none of them is named."""
    num = len(event.samples)
    if event.bad_samples or num < 2:
        return ''
    return f'{num} samples, named in its row'


def fault_forms(event: 'GuardEvent') -> Iterator[str]:
    """Yield what went wrong, in the words of the cause."""
    # A row may claim the cause 'none'.
    facts = CAUSES.get(event.cause, UNKNOWN)
    yield fill(facts.line, event, NAME_WIDTHS[0], False)
    for width in NAME_WIDTHS:
        yield fill(facts.brief or facts.line, event, width, True)


def fill(
    template: str, event: 'GuardEvent', width: int, is_brief: bool
) -> str:
    """Fill in the words of a template, which names only some of them."""
    words: Dict[str, object] = dict(
        loss=event.loss,
        of_all=f'{event.num_bad_params} of {event.num_params} tensors',
        origin=event.origin or UNKNOWN_ORIGIN,
        **tensor_words(event, width),
        **loss_words(event),
        **spike_words(event),
        **step_words(event, width, is_brief),
    )
    if is_brief:
        words.update(gradients='', parts='', usual='', others='')
    return template.format(**words)


def tensor_words(event: 'GuardEvent', width: int) -> Dict[str, str]:
    """Return the words about bad tensors."""
    # A row of another version may name no tensor.
    name, kind, tensor = 'a parameter', 'bad', 'weight'
    if event.params:
        first = event.params[0]
        name, kind = (
            f"'{shorten_name(first.name, width)}'",
            first.kind_in_words,
        )
        if first.tensor in TENSOR_WORDS:
            tensor = TENSOR_WORDS[first.tensor]
    others = and_more(len(event.params) - 1)
    if others:
        others += ' are bad'
    return {'name': name, 'kind': kind, 'tensor': tensor, 'others': others}


def loss_words(event: 'GuardEvent') -> Dict[str, str]:
    """Return the words about a loss that is not finite."""
    kind = 'Inf'
    if math.isnan(event.loss):
        kind = 'NaN'
    # loss + inf is Inf, and its gradients are fine.
    gradients = ' while its gradients are finite'
    if event.num_bad_params:
        of_all = f'{event.num_bad_params} of {event.num_params} tensors'
        gradients = f', and so are gradients ({of_all})'
    parts = ''
    # That the loss is bad is said already.
    if not event.counts or set(event.bad_losses) != {'loss'}:
        parts = event.bad_losses_in_words()
    if parts:
        parts = f': {parts}'
    return {'loss_kind': kind, 'gradients': gradients, 'parts': parts}


def spike_words(event: 'GuardEvent') -> JsonObject:
    """Return the words and numbers about a spike or a divergence."""
    spike = event.spike or NO_SPIKE
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


def step_words(
    event: 'GuardEvent', width: int, is_brief: bool
) -> Dict[str, str]:
    """Return the words about the step of an optimizer."""
    step = event.step or {}
    words = tensor_words(event, width)
    fault = 'made NaN or Inf of finite gradients'
    if is_brief:
        fault = f'made {words["tensor"]} {words["name"]} {words["kind"]}'
    elif event.params:
        fault = (
            f'made {words["kind"]} of finite gradients in '
            f'{words["tensor"]} {words["name"]}'
            f'{and_more(len(event.params) - 1)}'
        )
    fault += ' and was undone'
    if step.get('nonfinite'):
        fault = f'is refused: {", ".join(step["nonfinite"])}'
    return {
        'stepper': stepper_in_words(step),
        # The names of classes are short.
        'optimizer': shorten_name(step.get('optimizer', 'its optimizer'), 18),
        'step_fault': fault,
        'step_iter': str(step.get('iter', 'before')),
    }


def outcome_forms(event: 'GuardEvent') -> Sequence[str]:
    """Return the fate of the update, of the loss scale and of the streak."""
    is_committed = event.action is Action.STEP
    brief = ', '.join([*left_out(event), BRIEF_OUTCOMES[event.action]])
    if event.is_harmless_commit:
        return ['update committed, as without a guard', brief]
    if is_committed and event.micro_batches is None:
        factors = (
            f'gradients x {event.clip_coef:.4g}, learning rate x '
            f'{event.lr_factor:.4g}'
        )
        return [f'update committed, {factors}', brief]
    parts = [*left_out(event), OUTCOMES[event.action]]
    count, scale = [], []
    if event.loss_scale is not None:
        scale.append(scale_words(event, event.loss_scale))
    # A commit ends the streak.
    if not is_committed:
        count.append(count_words(event))
    return [
        ', '.join([*parts, *scale, *count]),
        ', '.join([*parts, *count]),
        ', '.join([brief, *count]),
        brief,
    ]


def left_out(event: 'GuardEvent') -> List[str]:
    """Return how many micro-batches were left out, if any were."""
    if event.micro_batches is None:
        return []
    num = len(event.micro_batches['left_out'])
    total = event.micro_batches['total']
    return [f'{num} of {total} micro-batches left out']


def scale_words(event: 'GuardEvent', loss_scale: Mapping[str, float]) -> str:
    """Describe what became of the loss scale."""
    before, after = loss_scale['before'], loss_scale['after']
    # The scale stays at its floor, and for causes that it cannot cure.
    is_plain = event.scale_blamed or not math.isfinite(event.loss)
    if before == after and is_plain:
        return f'loss scale stays at {before:g}'
    if before == after:
        return f'loss scale stays at {before:g}: it is not the likely cause'
    words = f'loss scale {before:g} -> {after:g}'
    if before < after and not event.scale_blamed:
        words += ' again: lowering it did not help'
    return words


def count_words(event: 'GuardEvent') -> str:
    """Describe the streak of skips that the update belongs to."""
    # A routine overflow is no part of a streak.
    if event.is_routine:
        return f'routine for a new scale, {event.routine_overflows} so far'
    if not event.counts:
        return f'counts toward no limit, {event.total_skips} rejected so far'
    skips = plural('skip', event.consecutive_skips)
    return f'{event.consecutive_skips} {skips} in a row'


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
