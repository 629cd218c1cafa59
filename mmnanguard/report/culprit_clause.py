"""The clause on the culprit in the report's first sentence."""

import math
from typing import List, Sequence

from mmnanguard.core import Autopsy
from mmnanguard.core.causes import facts_of_cause
from mmnanguard.core.diagnosis import diagnose
from mmnanguard.core.rows.phrases import samples_in_words
from mmnanguard.core.rows.read_row import sentence_of

from .collect_evidence import collect_evidence
from .findings import Finding, count_of_blames
from .summary import Culprit, Summary

__all__ = ['count_batches', 'describe_culprit', 'describe_update']

MIN_SHARE = 0.25  # share of all blames at which a parameter stands out


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
        clauses.append(describe_samples(diagnosis.samples, evidence.batches()))
    if 'module' in kinds and diagnosis.operation is not None:
        clauses.append(describe_module(diagnosis.operation))
    if 'module' in kinds and diagnosis.other is not None:
        module = describe_module(diagnosis.other)
        clauses.append(f'and in other batches {module}')
    if evidence.is_of_most_samples or evidence.is_of_random_samples:
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


def describe_update(summary: Summary, finding: Finding) -> str:
    """Return the clause on the first update of the trouble; '' without one."""
    for row in summary.events:
        is_alike = row.get('cause') == finding.cause
        if is_alike and (row.get('iter') or 0) >= finding.since:
            # What the guard did with it follows.
            return sentence_of(row).partition('; ')[0]
    return ''


def describe_suspects(names: Sequence[str], num_batches: int) -> str:
    """Return the clause on samples that are in all rejected batches."""
    who = samples_in_words(names)
    if len(names) == 1:
        return (
            f'suspect: {who}, in {num_batches} of {num_batches} rejected '
            'batches'
        )
    return f'suspects: {who}, some of them in each rejected batch'


def describe_samples(
    names: Sequence[str], batches: Sequence[Sequence[str]]
) -> str:
    """Return the clause on the samples at fault.

    Args:
        names: The samples.
        batches: The names of the samples of each rejected update.
    """
    times = ''
    num = count_batches(names, batches)
    if num > 1:
        times = f', in {num} of {len(batches)} rejected batches'
    return f'{samples_in_words(names)}{times}'


def count_batches(
    names: Sequence[str], batches: Sequence[Sequence[str]]
) -> int:
    """Return the number of batches that hold one of the samples."""
    return sum(not set(names).isdisjoint(batch) for batch in batches)


def describe_module(autopsy: Autopsy) -> str:
    """Return the clause on the module that an autopsy found."""
    if autopsy.phase in ('input', 'weight') or autopsy.is_kept:
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


def blamed_among(culprits: Sequence[Culprit]) -> List[Culprit]:
    """Return the culprits that were blamed at least once.

    All other culprits had only routine overflows, or were only part of a bad
    batch.
    """
    return [culprit for culprit in culprits if culprit.count]
