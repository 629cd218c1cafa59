import math
from typing import List, NamedTuple, Optional, Sequence, Tuple

from mmnanguard.core import Autopsy
from mmnanguard.core.causes import facts_of_cause
from mmnanguard.core.rows.remedy_row import FP32, RemedyRow

from .findings import Finding
from .row_text import command_of
from .summary import Row, Summary

__all__ = ['Step', 'next_steps', 'quoted', 'remedied', 'tell_culprit']


class Step(NamedTuple):
    """Something to do.

    Attributes:
        text: A clause in the imperative.
        detail: More of it; may be empty.
        code: What to paste; may be empty.
    """

    text: str
    detail: str = ''
    code: str = ''


NUM_EXCLUDED = 20
MIN_BATCHES = 3
MIN_SHARE = 0.25  # of what all parameters are blamed for


def next_steps(
    summary: Summary, trouble: Optional[Finding] = None
) -> Tuple[Step, ...]:
    """What to do, the most helpful first; at least one where there is
    trouble.
    """
    cures = [*leave_out(summary), *run_in_fp32(summary)]
    if trouble is None:
        return tuple(cures)
    advice = advise(summary, trouble)
    is_local = 'sample' in facts_of_cause(trouble.cause).culprits
    steps = [*cures, advice] if is_local else [advice, *cures]
    return (*steps, *advise_closer_look(summary, trouble.since))


def leave_out(summary: Summary) -> List[Step]:
    names = [one.name for one in summary.samples if one.count]
    if not names:
        return []
    more = f' and {len(names) - 1} more' if names[1:] else ''
    listed = names[:NUM_EXCLUDED]
    return [
        Step(
            f"leave out sample '{names[0]}'{more}, or mend it",
            'Autopsies and looks at inputs named it, and not all of its batch.'
            + ' The first ones are listed.' * (len(names) > len(listed)),
            "train_dataloader=dict(dataset=dict(type='mmnanguard."
            f"ExcludeSamples', samples={listed!r}, dataset=...))",
        )
    ]


def run_in_fp32(summary: Summary) -> List[Step]:
    remedies = summary.others.get('remedy')
    if remedies:
        return [
            Step(
                f'make the remedy permanent: {quoted(remedied(summary))} in '
                'float32',
                'Autopsies found that this is a cure; it runs so since.',
                command_of(remedies[-1]),
            )
        ]
    cured = [
        autopsy.module
        for autopsy in summary.records(Autopsy)
        if autopsy.remedy == FP32 and autopsy.module
    ]
    names = list(dict.fromkeys(cured))
    if not names:
        return []
    return [
        Step(
            f'run {quoted(names)} in float32',
            'Autopsies found that this is a cure.',
            "default_hooks=dict(fp32=dict(type='mmnanguard.Fp32ModulesHook', "
            f'modules={names!r}))',
        )
    ]


def remedied(summary: Summary) -> List[str]:
    """Return the modules that run in float32 since an autopsy advised it."""
    names = [remedy.module for remedy in summary.records(RemedyRow)]
    return list(dict.fromkeys(names))


def quoted(names: Sequence[str]) -> str:
    return ', '.join(f"'{name}'" for name in names)


def advise(summary: Summary, trouble: Finding) -> Step:
    """Return the advice on the cause as a step."""
    has_scale = not is_unscaled(summary, trouble)
    advice = facts_of_cause(trouble.cause).advice_for(has_scale)
    return Step(advice.short, advice.detail or advice.long, advice.command)


def is_unscaled(summary: Summary, trouble: Finding) -> bool:
    """Did its updates run without a loss scale, in bfloat16 or float32?"""
    scales = [
        row['loss_scale']
        for row in summary.events
        if row.get('cause') == trouble.cause
        and 'loss_scale' in row
        and (row.get('iter') or 0) >= trouble.since
    ]
    return bool(scales) and scales[-1] is None


def advise_closer_look(summary: Summary, since: int) -> List[Step]:
    dumps = summary.others.get('dump', [])
    of_it = [row for row in dumps if (row.get('iter') or 0) >= since]
    if dumps:
        dump = (of_it or dumps[-1:])[0]
        text = f'replay the dump of iteration {dump.get("iter")}'
        has_none = 'checkpoint' in (dump.get('needs') or ())
        detail = (
            'It has no weights: best is the last checkpoint before that '
            'iteration.'
        )
        return [Step(text, detail * has_none, command_of(dump))]
    if 'autopsy' in summary.others:
        return []
    return [
        Step(
            'train on with autopsies and dumps, which name the module',
            'This run has neither.',
            'python -m mmnanguard train CONFIG --resume --guard full',
        )
    ]


def tell_culprit(summary: Summary, trouble: Finding) -> str:
    """A clause; empty if none is known."""
    culprits = facts_of_cause(trouble.cause).culprits
    if not culprits:
        return ''
    named = [one for one in summary.samples if one.count]
    if named and 'sample' in culprits:
        times = f', {named[0].count} times' if named[0].count > 1 else ''
        more = f' and {len(named) - 1} more' if named[1:] else ''
        return f"culprit: sample '{named[0].name}'{more}{times}"
    found = [
        row
        for row in summary.others.get('autopsy', ())
        if row.get('module_type') and (row.get('iter') or 0) >= trouble.since
    ]
    if found and 'module' in culprits:
        return tell_module(found[0])
    for one in summary.samples:
        if one.num_batches >= max(MIN_BATCHES, summary.num_with_samples // 2):
            return (
                f"suspect: sample '{one.name}', in {one.num_batches} of "
                f'{summary.num_with_samples} rejected batches'
            )
    blamed = [one for one in summary.parameters if one.count]
    if not blamed or f"'{blamed[0].name}'" in trouble.what:
        return ''
    first, num = blamed[0], sum(one.count for one in blamed)
    if first.count < MIN_SHARE * num or first.count == 1 < num:
        return ''  # many are blamed alike
    times = f', {first.count:,} times' if first.count > 1 else ''
    return f"blamed: '{first.name}'{times}"


def tell_module(row: Row) -> str:
    found = Autopsy.from_row(row)
    made = 'gives NaN' if math.isnan(found.output_absmax) else 'overflows'
    where = ', '.join(
        filter(None, (found.module_type, found.op, found.source))
    )
    return (
        f"culprit: '{found.module or 'the model itself'}' ({where}) {made} in "
        f'{found.dtype} in {found.phase}'
    )
