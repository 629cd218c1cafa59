"""The recommended steps for a run, and the culprit that they are about."""

import math
from typing import List, NamedTuple, Optional, Sequence, Tuple

from mmnanguard.core import Autopsy
from mmnanguard.core.causes import facts_of_cause
from mmnanguard.core.rows.remedy_row import FP32, RemedyRow

from .findings import Finding, count_of_blames
from .row_text import command_of
from .summary import Culprit, Row, Summary

__all__ = [
    'Step',
    'describe_culprit',
    'join_quoted',
    'next_steps',
    'remedied_modules',
]


class Step(NamedTuple):
    """A recommended step.

    Attributes:
        text: A clause in the imperative.
        detail: Explanation in full sentences; may be empty.
        code: A command or config line to paste; may be empty.
    """

    text: str
    detail: str = ''
    code: str = ''


NUM_EXCLUDED = 20  # samples in the config line; more are hard to paste
# A sample that no check named is a suspect if it was in at least this many
# rejected batches, and in at least half of all rejected batches.
MIN_BATCHES = 3
MIN_SHARE = 0.25  # share of all blames at which a parameter stands out


def next_steps(
    summary: Summary, finding: Optional[Finding] = None
) -> Tuple[Step, ...]:
    """Return the recommended steps, the most helpful first.

    Args:
        summary: The summary of the run.
        finding: The gravest finding; None if the run is healthy. With a
            finding there is at least one step.
    """
    local_steps = [*exclude_samples(summary), *run_in_fp32(summary)]
    if finding is None:
        return tuple(local_steps)
    general_step = step_for_cause(summary, finding)
    # Only some causes can originate in a sample or module. For all other
    # causes, such as bad weights, the general advice helps more.
    if 'sample' in facts_of_cause(finding.cause).culprits:
        steps = [*local_steps, general_step]
    else:
        steps = [general_step, *local_steps]
    return (*steps, *diagnose_further(summary, finding.since))


def exclude_samples(summary: Summary) -> List[Step]:
    """Return the step that leaves out bad samples, if any are known."""
    names = [sample.name for sample in blamed_among(summary.samples)]
    if not names:
        return []
    listed = names[:NUM_EXCLUDED]
    return [
        Step(
            f"leave out sample '{names[0]}'{and_more(names)}, or mend it",
            'Autopsies and looks at inputs named it, and not all of its batch.'
            + ' The first ones are listed.' * (len(names) > len(listed)),
            "train_dataloader=dict(dataset=dict(type='mmnanguard."
            f"ExcludeSamples', samples={listed!r}, dataset=...))",
        )
    ]


def run_in_fp32(summary: Summary) -> List[Step]:
    """Return the step that runs modules in float32, if autopsies advise it."""
    remedies = summary.others.get('remedy')
    # The guard has already applied the cure, but only in this process: a new
    # run needs it in its config.
    if remedies:
        names = join_quoted(remedied_modules(summary))
        return [
            Step(
                f'make the remedy permanent: {names} in float32',
                'Autopsies found that this is a cure; it runs so since.',
                command_of(remedies[-1]),
            )
        ]
    modules: List[str] = []
    for autopsy in summary.records(Autopsy):
        # Several autopsies may name the same module, and some name none.
        is_new = autopsy.module and autopsy.module not in modules
        if is_new and autopsy.remedy == FP32:
            modules.append(autopsy.module)
    if not modules:
        return []
    return [
        Step(
            f'run {join_quoted(modules)} in float32',
            'Autopsies found that this is a cure.',
            "default_hooks=dict(fp32=dict(type='mmnanguard.Fp32ModulesHook', "
            f'modules={modules!r}))',
        )
    ]


def remedied_modules(summary: Summary) -> List[str]:
    """Return the modules that the remedies of the guard run in float32."""
    modules: List[str] = []
    for remedy in summary.records(RemedyRow):
        # Several attempts of the run may have written the row.
        if remedy.module not in modules:
            modules.append(remedy.module)
    return modules


def join_quoted(names: Sequence[str]) -> str:
    """Return the names in quotes, with commas between them."""
    return ', '.join(map("'{}'".format, names))


def and_more(items: Sequence[object]) -> str:
    """Return how many items follow the first; '' if none does."""
    return f' and {len(items) - 1} more' * (len(items) > 1)


def blamed_among(culprits: Sequence[Culprit]) -> List[Culprit]:
    """Return the culprits that were blamed at least once.

    All other culprits had only routine overflows, or were only part of a bad
    batch.
    """
    return [culprit for culprit in culprits if culprit.count]


def step_for_cause(summary: Summary, finding: Finding) -> Step:
    """Return the general advice on the finding's cause as a step."""
    has_scale = not is_unscaled(summary, finding)
    advice = facts_of_cause(finding.cause).advice_for(has_scale)
    return Step(advice.short, advice.detail or advice.long, advice.command)


def is_unscaled(summary: Summary, finding: Finding) -> bool:
    """Whether the finding's updates ran in bfloat16 or float32.

    Such updates need no loss scale, so their rows have null for it.
    """
    # The last update decides: a resumed run may have another optimizer
    # wrapper. Rows without the key say nothing.
    for row in reversed(summary.events):
        is_of_finding = (
            row.get('cause') == finding.cause
            and (row.get('iter') or 0) >= finding.since
        )
        if is_of_finding and 'loss_scale' in row:
            return row['loss_scale'] is None
    return False


def diagnose_further(summary: Summary, since: int) -> List[Step]:
    """Return the step that diagnoses further: a replay, or more hooks."""
    dumps = summary.others.get('dump')
    if dumps:
        return [replay_step(dumps, since)]
    # An autopsy has already named the module.
    if 'autopsy' in summary.others:
        return []
    return [
        Step(
            'train on with autopsies and dumps, which name the module',
            'This run has neither.',
            'python -m mmnanguard train CONFIG --resume --guard full',
        )
    ]


def replay_step(dumps: Sequence[Row], since: int) -> Step:
    """Return the step that replays the first dump of the trouble."""
    # The first dump since the trouble began is the closest to its origin. If
    # there is none, the last dump before the trouble comes closest.
    dump = dumps[-1]
    for row in dumps:
        if (row.get('iter') or 0) >= since:
            dump = row
            break
    detail = ''
    if 'checkpoint' in (dump.get('needs') or ()):
        detail = (
            'It has no weights: best is the last checkpoint before that '
            'iteration.'
        )
    text = f'replay the dump of iteration {dump.get("iter")}'
    return Step(text, detail, command_of(dump))


def describe_culprit(summary: Summary, finding: Finding) -> str:
    """Return the clause on the culprit; '' if no culprit is known."""
    kinds = facts_of_cause(finding.cause).culprits
    if not kinds:
        return ''
    # The most certain evidence comes first: a sample or module that was named
    # by a check, then counts.
    if 'sample' in kinds and blamed_among(summary.samples):
        return describe_samples(blamed_among(summary.samples))
    if 'module' in kinds:
        for row in summary.others.get('autopsy', ()):
            is_since = (row.get('iter') or 0) >= finding.since
            # Without a type, the autopsy found no module.
            if is_since and row.get('module_type'):
                return describe_module(row)
    num_needed = max(MIN_BATCHES, summary.num_with_samples // 2)
    for sample in summary.samples:
        if sample.num_batches >= num_needed:
            return (
                f"suspect: sample '{sample.name}', in {sample.num_batches} of "
                f'{summary.num_with_samples} rejected batches'
            )
    return describe_parameter(summary, finding)


def describe_samples(samples: Sequence[Culprit]) -> str:
    """Return the clause on samples that were named."""
    first = samples[0]
    times = f', {first.count} times' * (first.count > 1)
    return f"culprit: sample '{first.name}'{and_more(samples)}{times}"


def describe_module(row: Row) -> str:
    """Return the clause on the module that an autopsy found."""
    autopsy = Autopsy.from_row(row)
    effect = 'overflows'
    if math.isnan(autopsy.output_absmax):
        effect = 'gives NaN'
    parts = (autopsy.module_type, autopsy.op, autopsy.source)
    place = ', '.join(filter(None, parts))
    # The root module has the name ''.
    return (
        f"culprit: '{autopsy.module or 'the model itself'}' ({place}) "
        f'{effect} in {autopsy.dtype} in {autopsy.phase}'
    )


def describe_parameter(summary: Summary, finding: Finding) -> str:
    """Return the clause on the parameter that stands out, or ''."""
    blamed = blamed_among(summary.parameters)
    # The clause of the finding may already name the parameter.
    if not blamed or f"'{blamed[0].name}'" in finding.clause:
        return ''
    first, num = blamed[0], sum(map(count_of_blames, blamed))
    # If many parameters are blamed equally often, the first one leads by
    # chance.
    if first.count < MIN_SHARE * num or first.count == 1 < num:
        return ''
    times = f', {first.count:,} times' * (first.count > 1)
    return f"blamed: '{first.name}'{times}"
