"""The recommended steps for a run, and the culprit that they are about."""

import math
import re
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence, Tuple, TypeVar

from mmnanguard._support.escape import shell_word
from mmnanguard.core import Action, Autopsy, GuardEvent
from mmnanguard.core.causes import facts_of_cause
from mmnanguard.core.diagnosis import ADVICE_ON_INITIAL, diagnose
from mmnanguard.core.evidence import Evidence
from mmnanguard.core.rows.input_row import InputRow
from mmnanguard.core.rows.phrases import samples_in_words
from mmnanguard.core.rows.read_row import record_of
from mmnanguard.core.rows.remedy_row import FP32, RemedyRow, line_of_fp32
from mmnanguard.core.rows.row_record import RowRecord

from .findings import Finding, count_of_blames
from .row_text import command_of
from .summary import Culprit, Row, Summary

R = TypeVar('R', bound=RowRecord)

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


NUM_EXCLUDED = 100  # samples in a command; a shell limits its length
LIST_NAME = 'excluded_samples.txt'
# The name of a sample without a name, which is none in the dataset.
NO_NAME = re.compile(r'batch \d+, row \d+')
LESS = 0.1  # factor on a learning rate that was too high
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
    if finding is None:
        evidence = collect_evidence(summary)
        names = evidence.samples()
        # Without most of its samples, a run could not go on.
        if evidence.is_of_most_samples:
            names = ()
        return (*exclude_samples(summary, names), *run_in_fp32(summary))
    diagnosis = diagnose(collect_evidence(summary, finding))
    local_steps = [
        *exclude_samples(summary, diagnosis.samples),
        *run_in_fp32(summary),
    ]
    advice = diagnosis.advice
    code = ''
    growth = diagnosis.growth
    if growth is not None:
        # A negative rate that is smaller goes uphill as well, and a batch
        # that jumped does so at any rate.
        if not growth.is_uphill and growth.jump == 0:
            code = summary.launch.train_slower(LESS)
    elif advice is ADVICE_ON_INITIAL:
        code = ''  # any checkpoint of the run has the same weights
    elif facts_of_cause(finding.cause).blames == 'weight':
        code = summary.launch.train('--resume')
    general_step = Step(advice.short, advice.detail or advice.long, code)
    # Only some causes can originate in a sample or module. For all other
    # causes, such as bad weights, and after an explosion, the general advice
    # helps more.
    is_local = 'sample' in facts_of_cause(finding.cause).culprits
    if is_local and growth is None:
        steps = [*local_steps, general_step]
    else:
        steps = [general_step, *local_steps]
    # Neither a replay nor an autopsy runs the optimizer's step.
    if facts_of_cause(finding.cause).is_of_step:
        return tuple(steps)
    return (*steps, *diagnose_further(summary, finding.since))


def collect_evidence(
    summary: Summary, finding: Optional[Finding] = None
) -> Evidence:
    """Return the evidence on a finding, or on all that a run rejected."""
    alike: List[GuardEvent] = []
    for row in summary.events:
        record = record_of(row)
        if not isinstance(record, GuardEvent):
            continue
        is_alike = not record.is_routine
        if finding is not None:
            is_alike = record.cause.value == finding.cause
        if is_alike and record.action is not Action.STEP:
            alike.append(record)
    cause, since = '', 0
    if finding is not None:
        cause, since = finding.cause, finding.since
    events = [event for event in alike if event.iter >= since]
    # The run has a limited number of autopsies, and similar updates share
    # one: those of the trouble, or else those of earlier updates like it.
    autopsies = joined(summary.records(Autopsy), events)
    autopsies = autopsies or joined(summary.records(Autopsy), alike)
    inputs = summary.records(InputRow)
    if finding is not None:
        inputs = joined(inputs, events)
    num_iters = 1
    if events:
        num_iters = max(summary.last_iter - events[0].iter + 1, len(events))
    share = len(events) / num_iters
    return Evidence(cause, events, autopsies, inputs, share)


def joined(records: Sequence[R], events: Sequence[GuardEvent]) -> List[R]:
    """Return the records whose ids are those of the events."""
    ids = {event.id for event in events}
    return [record for record in records if getattr(record, 'id', '') in ids]


def exclude_samples(summary: Summary, names: Sequence[str]) -> List[Step]:
    """Return the step that leaves out the samples at fault, if any."""
    if not names:
        return []
    text = f"leave out sample '{names[0]}'{and_more(names)}, or mend it"
    detail = 'It explains the rejected batches better than the model does.'
    # A list has a line for each sample.
    listed = [name for name in names if not set(name) & {*'\r\n'}]
    if listed != list(names) or any(map(NO_NAME.fullmatch, names)):
        return [Step(text, detail)]
    path = str(Path(summary.launch.work_dir, LIST_NAME))
    words = ' '.join(map(shell_word, names[:NUM_EXCLUDED]))
    if names[NUM_EXCLUDED:]:
        detail += ' The first ones are listed.'
    train = summary.launch.train('--resume', '--exclude', path)
    write = f"printf '%s\\n' {words} > {shell_word(path)}"
    return [Step(text, detail, f'{write} && {train}')]


def run_in_fp32(summary: Summary) -> List[Step]:
    """Return the step that runs modules in float32, if autopsies advise it."""
    remedies = summary.others.get('remedy')
    # The guard has already applied the cure, and its checkpoints know it, but
    # a new run needs it in its config.
    if remedies:
        names = join_quoted(remedied_modules(summary))
        line = command_of(remedies[-1])
        return [
            Step(
                f'make the remedy permanent: {names} in float32',
                'Autopsies found that this is a cure; it runs so since.',
                line and summary.launch.train('--cfg-options', line),
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
            summary.launch.train(
                '--resume', '--cfg-options', line_of_fp32(modules)
            ),
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
            summary.launch.train('--resume', '--guard', 'full'),
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
        detail = 'It has no weights: the checkpoint is older than the dump.'
        if not dump.get('checkpoint'):
            detail = (
                'It has no weights, and no checkpoint is left that is older: '
                'FILE is a checkpoint from before that iteration.'
            )
    text = f'replay the dump of iteration {dump.get("iter")}'
    return Step(text, detail, command_of(dump))


def describe_culprit(summary: Summary, finding: Finding) -> str:
    """Return the clause on the culprit; '' if no culprit is known."""
    kinds = facts_of_cause(finding.cause).culprits
    if not kinds:
        return ''
    evidence = collect_evidence(summary, finding)
    diagnosis = diagnose(evidence)
    if diagnosis.growth is not None:
        return diagnosis.reason
    # The most certain evidence comes first: a sample or module that was named
    # by a check, then counts.
    clauses = []
    if 'sample' in kinds and diagnosis.samples:
        clauses.append(describe_samples(summary, diagnosis.samples))
    if 'module' in kinds and diagnosis.operation is not None:
        clauses.append(describe_module(diagnosis.operation))
    if evidence.is_of_most_samples:
        clauses = [diagnosis.reason]
    num_batches = len(evidence.batches())
    if clauses:
        clause = f'culprit: {", ".join(clauses)}'
        if diagnosis.suspects:
            suspects = describe_suspects(diagnosis.suspects, num_batches)
            clause += f'; {suspects}'
        return clause
    names = evidence.suspects()
    if 'sample' in kinds and names:
        return describe_suspects(names, num_batches)
    return describe_parameter(summary, finding)


def describe_suspects(names: Sequence[str], num_batches: int) -> str:
    """Return the clause on samples that are in all rejected batches."""
    who = samples_in_words(names)
    if len(names) == 1:
        return (
            f'suspect: {who}, in {num_batches} of {num_batches} rejected '
            'batches'
        )
    return f'suspects: {who}, some of them in each rejected batch'


def describe_samples(summary: Summary, names: Sequence[str]) -> str:
    """Return the clause on the samples at fault, most often named first."""
    counts = {sample.name: sample.count for sample in summary.samples}
    first = max(names, key=lambda name: counts.get(name, 0))
    times = ''
    if counts.get(first, 0) > 1:
        times = f', {counts[first]} times'
    return f"sample '{first}'{and_more(names)}{times}"


def describe_module(autopsy: Autopsy) -> str:
    """Return the clause on the module that an autopsy found."""
    if autopsy.phase == 'weight' or autopsy.is_kept:
        return autopsy.finding()
    effect = 'overflows'
    if autopsy.call():
        effect = f'overflows at {autopsy.call()}'
    if autopsy.is_certain:
        effect = autopsy.pole()
    elif math.isnan(autopsy.output_absmax):
        effect = 'gives NaN'
    return f'{autopsy.place()} {effect} in {autopsy.dtype} in {autopsy.phase}'


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
