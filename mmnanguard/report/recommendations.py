"""The recommended steps for a run."""

import re
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from mmnanguard._support.escape import shell_word
from mmnanguard.core import Autopsy
from mmnanguard.core.causes import facts_of_cause
from mmnanguard.core.diagnosis import (
    ADVICE_ON_INITIAL,
    ADVICE_ON_LOADED,
    ADVICE_ON_PRETRAINED,
    diagnose,
)
from mmnanguard.core.evidence import Evidence
from mmnanguard.core.growth_advice import clip_line
from mmnanguard.core.launch import tool_command
from mmnanguard.core.operation_advice import advise_on, advise_without_cures
from mmnanguard.core.rows.phrases import samples_in_words
from mmnanguard.core.rows.remedy_row import FP32, RemedyRow, line_of_fp32
from mmnanguard.core.step_advice import advise_on_step

from .collect_evidence import collect_evidence
from .culprit_clause import count_batches
from .findings import Finding
from .row_text import command_of
from .summary import Row, Summary

__all__ = ['Step', 'join_quoted', 'next_steps', 'remedied_modules']


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
        return (
            *advise_on_steps(evidence),
            *advise_on_operation(evidence, names),
            *exclude_samples(summary, names, evidence),
            *run_in_fp32(summary, names),
        )
    evidence = collect_evidence(summary, finding)
    diagnosis = diagnose(evidence)
    exclusion = exclude_samples(summary, diagnosis.samples, evidence)
    in_fp32 = run_in_fp32(summary, diagnosis.samples)
    advice = diagnosis.advice
    detail, code = advice.detail or advice.long, ''
    growth = diagnosis.growth
    if growth is not None:
        # A lower rate would help little.
        is_of_loss = growth.jump or growth.is_bottomless
        if not (is_of_loss or growth.is_uphill or evidence.uphill):
            line = clip_line(growth)
            # Of several optimizers, each has a line of its own.
            if line and evidence.events[-1].optimizer == 'default':
                options = ('--cfg-options', line)
                code = summary.launch.train_slower(LESS, *options)
            else:
                code = summary.launch.train_slower(LESS)
                detail += ' The command lowers the learning rate alone.'
    elif advice in (ADVICE_ON_INITIAL, ADVICE_ON_PRETRAINED):
        # Any checkpoint of the run has the same weights, and no operation
        # is to be found.
        return (Step(advice.short, advice.long),)
    elif advice is ADVICE_ON_LOADED:
        code = tool_command('scan_checkpoints', summary.launch.work_dir)
    elif facts_of_cause(finding.cause).blames == 'weight':
        code = summary.launch.train('--resume')
    general_step = Step(advice.short, detail, code)
    # Only some causes can originate in a sample or module. For all other
    # causes, such as bad weights, and after an explosion, the general advice
    # helps more.
    is_local = 'sample' in facts_of_cause(finding.cause).culprits
    if not is_local or growth is not None or evidence.impossible:
        steps = [general_step, *exclusion, *in_fp32]
    elif diagnosis.keeps_samples:
        steps = [*in_fp32, general_step, *exclusion]
    else:
        steps = [*exclusion, *in_fp32, general_step]
    # Neither a replay nor an autopsy runs the optimizer's step.
    if facts_of_cause(finding.cause).is_of_step:
        return tuple(steps)
    return (*steps, *diagnose_further(summary, finding.since))


def advise_on_steps(evidence: Evidence) -> List[Step]:
    """Return the step on an optimizer whose own steps were rejected."""
    events = []
    for event in evidence.events:
        if facts_of_cause(event.cause.value).is_of_step:
            events.append(event)
    if not events:
        return []
    cause = events[-1].cause.value
    advice = advise_on_step(events, facts_of_cause(cause).advice)
    return [Step(advice.short, advice.detail or advice.long)]


def advise_on_operation(
    evidence: Evidence, names: Sequence[str]
) -> List[Step]:
    """Return the step on an operation that explains more than samples do.

    Args:
        evidence: All that the run rejected.
        names: The samples at fault.
    """
    finding = evidence.finding
    if finding is None:
        return []
    # A loss leaves bad inputs out too late.
    if finding.is_left_out:
        advice = advise_on(finding)
    elif names and finding.is_certain:
        advice = advise_without_cures(finding)
    else:
        return []
    return [Step(advice.short, advice.detail or advice.long)]


def exclude_samples(
    summary: Summary, names: Sequence[str], evidence: Evidence
) -> List[Step]:
    """Return the step that leaves out the samples at fault, if any."""
    if not names:
        return []
    it = 'them' if names[1:] else 'it'
    text = f'leave out {samples_in_words(names)}, or mend {it}'
    batches = evidence.batches()
    what = 'one of them' if names[1:] else 'it'
    detail = (
        f'{count_batches(names, batches)} of {len(batches)} rejected batches '
        f'hold {what}.'
    )
    # A list has a line for each sample.
    listed = [name for name in names if not set(name) & {*'\r\n'}]
    if listed != list(names) or any(map(NO_NAME.fullmatch, names)):
        return [Step(text, detail)]
    if summary.is_over:
        detail += ' The run is over, so that the command trains anew.'
    path = str(Path(summary.launch.work_dir, LIST_NAME))
    words = ' '.join(map(shell_word, names[:NUM_EXCLUDED]))
    if names[NUM_EXCLUDED:]:
        detail += ' The first ones are listed.'
    train = summary.launch.train_on('--exclude', path)
    # Samples that an earlier command left out stay on the list.
    write = f"printf '%s\\n' {words} >> {shell_word(path)}"
    return [Step(text, detail, f'{write} && {train}')]


def run_in_fp32(summary: Summary, samples: Sequence[str]) -> List[Step]:
    """Return the step that runs modules in float32, if autopsies advise it.

    Not for samples at fault: in float32, the huge gradients of an outlier
    would be committed.
    """
    # The guard has already applied the cure, and its checkpoints know it, but
    # a new run needs it in its config.
    applied: Dict[str, RemedyRow] = {}
    for remedy in summary.records(RemedyRow):
        applied[remedy.remedy] = remedy
    if applied:
        return [keep_remedy(summary, last) for last in applied.values()]
    modules: List[str] = []
    for autopsy in summary.records(Autopsy):
        # Several autopsies may name the same module, and some name none.
        is_new = autopsy.module and autopsy.module not in modules
        is_outlier = not set(autopsy.samples).isdisjoint(samples)
        if is_new and autopsy.remedy == FP32 and not is_outlier:
            modules.append(autopsy.module)
    if not modules:
        return []
    return [
        Step(
            f'run {join_quoted(modules)} in float32',
            'Autopsies found that this is a cure.',
            summary.launch.train_on('--cfg-options', line_of_fp32(modules)),
        )
    ]


def keep_remedy(summary: Summary, remedy: RemedyRow) -> Step:
    """Return the step that makes a remedy permanent.

    Args:
        summary: The summary of the run.
        remedy: The last remedy of its kind.
    """
    what = remedy.sentence().partition(' from now on')[0]
    if remedy.remedy == FP32:
        what = f'{join_quoted(remedied_modules(summary))} in float32'
    reason = 'Autopsies found that this is a cure; it runs so since.'
    if '-alert.' in remedy.id:
        reason = 'An alert of StabilityMonitorHook led to it.'
    line = remedy.config
    return Step(
        f'make the remedy permanent: {what}',
        reason,
        line and summary.launch.train('--cfg-options', line),
    )


def remedied_modules(summary: Summary) -> List[str]:
    """Return the modules that the remedies of the guard run in float32."""
    modules: List[str] = []
    for remedy in summary.records(RemedyRow):
        # Several attempts of the run may have written the row.
        if remedy.remedy == FP32 and remedy.module not in modules:
            modules.append(remedy.module)
    return modules


def join_quoted(names: Sequence[str]) -> str:
    """Return the names in quotes, with commas between them."""
    return ', '.join(map("'{}'".format, names))


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
