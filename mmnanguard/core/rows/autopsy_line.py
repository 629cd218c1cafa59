"""The findings of an autopsy as a sentence, and as the line of a console."""

import math
from typing import TYPE_CHECKING, List, Sequence

from mmnanguard._support.console_line import NAME_WIDTHS, fit, shorten_name

if TYPE_CHECKING:
    from .autopsy import Autopsy

__all__ = ['autopsy_line', 'autopsy_sentence']


def autopsy_sentence(autopsy: 'Autopsy', is_compiled: bool) -> str:
    """Describe the findings of a replay in a sentence."""
    clauses = clauses_of(autopsy, is_compiled)
    return '; '.join(clause[0] for clause in clauses if clause[0])


def autopsy_line(autopsy: 'Autopsy', iteration: int, is_compiled: bool) -> str:
    """Return the console line of an autopsy."""
    first, *others = clauses_of(autopsy, is_compiled)
    start = f'Iter {iteration}: autopsy'
    return fit([f'{start}: {text}' for text in first], *others)


def clauses_of(autopsy: 'Autopsy', is_compiled: bool) -> List[Sequence[str]]:
    """Return the clauses of an autopsy, each from full to short."""
    if autopsy.repeats and not autopsy.phase:
        return [['the fault repeats; where it begins was not seen']]
    if autopsy.repeats:
        return [
            finding_forms(autopsy),
            [autopsy.tried_in_words(), cured_by(autopsy)],
            ['it happens again when replayed', ''],
        ]
    # A replay runs eagerly, because a dispatch mode does not see the
    # operations inside of compiled code.
    if is_compiled:
        return [
            [
                'eager did not reproduce it: run again without torch.compile, '
                'the update is finite',
                'eager did not reproduce it',
            ],
            ['either the fault is transient or the compiled code makes it'],
        ]
    if autopsy.keys:
        finite = 'run again, loss and gradients are finite although {} is not'
        forms = []
        for width in NAME_WIDTHS:
            names = shortened(autopsy, width).keys
            forms.append(finite.format(', '.join(map(repr, names))))
        forms.append(finite.format(repr(names[0])))
        return [
            forms,
            [
                'the model may mask it on purpose, then leave it out of '
                'InputGuardHook(keys=...)',
                'the model may mask it',
            ],
        ]
    return [
        ['run again, the update is finite'],
        [
            'the fault is transient, or in what a replay does not have '
            '(Python state, hooks that change the batch or inject the fault)',
            'the fault is transient, or in what a replay does not have',
        ],
    ]


def finding_forms(autopsy: 'Autopsy') -> List[str]:
    """Return where the fault begins, with fewer and fewer words."""
    forms = [autopsy.finding()]
    forms += [shortened(autopsy, width).finding() for width in NAME_WIDTHS]
    for width in NAME_WIDTHS[1:]:
        for is_full in (True, False):
            forms.append(brief(shortened(autopsy, width), is_full))
    return forms


def shortened(autopsy: 'Autopsy', width: int) -> 'Autopsy':
    """Return an autopsy whose names have at most ``width`` columns."""
    return autopsy.replace(
        module=shorten_name(autopsy.module, width),
        source=shorten_name(autopsy.source, width),
        mask=shorten_name(autopsy.mask, width),
        samples=tuple(shorten_name(name, width) for name in autopsy.samples),
        keys=tuple(shorten_name(name, width) for name in autopsy.keys),
    )


def brief(autopsy: 'Autopsy', is_full: bool) -> str:
    """Return culprit, module and fault, or with operation and dtype."""
    who = ''
    if autopsy.samples:
        who = f'{autopsy.named_samples()}: '
    elif autopsy.keys:
        who = f"'{autopsy.keys[0]}': "
    if autopsy.phase in ('input', 'weight'):
        return f'{who}not finite to begin with'
    fault, where = 'overflows', f' in {autopsy.dtype} in {autopsy.phase}'
    if math.isnan(autopsy.output_absmax):
        fault = 'gives NaN'
    if autopsy.is_certain:
        fault = autopsy.pole()
        if not is_full:
            fault = 'has a pole'
    if autopsy.is_kept:
        fault, where = 'uses a tensor that was bad before', ''
    if is_full:
        return f'{who}{autopsy.place()} {fault}{where}'
    source = f' ({autopsy.source})' if autopsy.source else ''
    place = 'the model itself'
    if autopsy.module:
        place = f"'{autopsy.module}'"
    return f'{who}{place}{source} {fault}'


def cured_by(autopsy: 'Autopsy') -> str:
    """Return the cures that made the replay finite; '' if none did."""
    names = [
        cure for cure, is_finite in autopsy.outcomes().items() if is_finite
    ]
    return f'finite with {names[0]}' if names else ''
