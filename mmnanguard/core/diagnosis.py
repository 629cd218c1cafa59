"""The diagnosis of rejected updates: the evidence decides on the advice.

The story of a halt and the report both call :func:`diagnose`, so they never
contradict each other.
"""

from dataclasses import replace
from typing import NamedTuple, Optional, Sequence, Tuple

from .causes import Advice, facts_of_cause
from .evidence import Evidence
from .growth_advice import explain_growth, explain_settings
from .operation_advice import advise_on, advise_without_cures, cure_of
from .rows.autopsy import Autopsy
from .rows.guard_event import INITIAL_ORIGIN, PAST_GUARD, PRETRAINED
from .rows.phrases import samples_in_words
from .rules.recent_commits import Growth
from .step_advice import advise_on_step

__all__ = [
    'ADVICE_ON_INITIAL',
    'ADVICE_ON_LOADED',
    'ADVICE_ON_PRETRAINED',
    'Diagnosis',
    'diagnose',
]

TRANSIENT = 'the fault did not happen again when the update was replayed'
ADVICE_ON_TRANSIENT = Advice(
    'look for what a replay does not have',
    'The fault is transient, or made by what a replay does not have: hooks '
    'that change the batch, Python state, compiled code, the hardware.',
)
LEAST_GROWTH_AT_POLE = 1e3
LEAST_SHARE = 0.05  # of the samples, which a training would miss
IF_MISSING = (
    'If NaN or Inf marks a missing value there, take such elements out by '
    'index, or with torch.where before anything is computed with them: a '
    'weight of 0 does not, for 0 times NaN is NaN.'
)


class Diagnosis(NamedTuple):
    """A reason with its evidence, and what to do about it.

    Attributes:
        reason: A clause; '' if the cause says all that is known.
        advice: The recommendation.
        samples: The samples at fault.
        operation: The autopsy that found the operation at fault, if any.
        growth: The explosion before it, if that is the reason.
        suspects: Samples that the operation may have met: each rejected
            batch holds some of them.
        other: The autopsy of another operation, which went bad in batches
            without the samples at fault.
        keeps_samples: Whether the advice comes before to leave out the
            samples at fault.
    """

    reason: str
    advice: Advice
    samples: Tuple[str, ...] = ()
    operation: Optional[Autopsy] = None
    growth: Optional[Growth] = None
    suspects: Tuple[str, ...] = ()
    other: Optional[Autopsy] = None
    keeps_samples: bool = False


ADVICE_ON_LOADED = Advice(
    'resume from a clean checkpoint',
    'Resume from a checkpoint that is clean: python -m mmnanguard '
    'scan_checkpoints WORK_DIR lists them. If none is, begin anew.',
)
ADVICE_ON_INITIAL = Advice(
    'initialize all weights of the model',
    'Bad weights were NaN or Inf before the first update, so that training '
    'did not make them so. Fill them in __init__ or init_weights: torch.empty '
    'leaves whatever the memory held, and a pretrained file may lack them.',
)
ADVICE_ON_PRETRAINED = Advice(
    'mend the file of load_from, or load another one',
    'Bad weights were NaN or Inf in the file of load_from, so that training '
    'did not make them so: python -m mmnanguard scan_checkpoints FILE lists '
    'them. Load another file, or leave them out of it so that the model '
    'initializes them.',
)

ADVICE_ON_STRANGER = Advice(
    'let the optimizer wrapper make each step',
    'The weights went bad after a step that the guard did not make: nothing '
    'had checked its gradients, which an overflow of the loss scale makes Inf '
    'or NaN. Call optim_wrapper.update_params(loss) or step() in place of the '
    "optimizer's own step(), and resume from a checkpoint written before.",
)
ADVICE_ON_FIRST_OVERFLOW = Advice(
    'normalize the inputs, and look for a division by a tiny number',
    'The gradients overflow before the first update, so that training did '
    'not make them so. Normalize the inputs, look in the loss for a division '
    'by a tiny number, and look at the initialization.',
)


def diagnose(evidence: Evidence) -> Diagnosis:
    """Return the diagnosis that explains the evidence best."""
    diagnosis = first_diagnosis(evidence)
    known = diagnosis.samples
    other = evidence.finding_without(known)
    if evidence.is_of_inputs:
        # Beside samples that are not finite, others may meet an operation.
        known = evidence.with_bad_inputs(known) or known
    finding = evidence.finding_without(known)
    if not known or finding is None:
        return diagnosis
    advice = diagnosis.advice
    besides = (
        f'Other rejected batches do not hold {samples_in_words(known)}: '
        f'there {finding.finding()}. {advise_on(finding).long}'
    )
    return diagnosis._replace(
        advice=replace(
            advice,
            long=f'{advice.long} {besides}',
            detail=f'{advice.detail or advice.long} {besides}',
        ),
        other=other,
    )


def first_diagnosis(evidence: Evidence) -> Diagnosis:
    """Return the diagnosis that explains most of the evidence."""
    facts = facts_of_cause(evidence.cause)
    general = facts.advice_for(evidence.has_scale)
    growth = evidence.growth
    if facts.is_of_step:
        return Diagnosis('', advise_on_step(evidence.events, general))
    for event in evidence.events:
        if event.origin:
            reason = f'the weights are bad, {event.origin}'
            advice = ADVICE_ON_LOADED
            if event.origin == INITIAL_ORIGIN:
                advice = ADVICE_ON_INITIAL
            elif event.origin.startswith(PRETRAINED):
                advice = ADVICE_ON_PRETRAINED
            elif event.origin.endswith(PAST_GUARD):
                advice = ADVICE_ON_STRANGER
            return Diagnosis(reason, advice)
    if evidence.impossible and not evidence.is_of_inputs:
        if growth is not None:
            return Diagnosis(*explain_growth(growth, evidence), growth=growth)
        words, advice = explain_settings(evidence.impossible)
        return Diagnosis(f'the optimizer has {words}', advice)
    # Weights that are bad already, a divergence and a spike say by themselves
    # what they are.
    if facts.blames == 'weight':
        return Diagnosis('', general)
    # One batch may be an outlier.
    is_first = evidence.since == 1 and len(evidence.events) > 1
    if is_first and growth is None and facts.blames == 'largest gradient':
        reason = 'the gradients overflow before the first update'
        return Diagnosis(reason, ADVICE_ON_FIRST_OVERFLOW)
    if facts.ends_run or not (facts.is_replayable or growth):
        return Diagnosis('', general)
    finding, samples = evidence.finding, evidence.samples()
    masked = evidence.masked_keys()
    if masked:
        return of_masked(masked)
    if finding is not None and finding.is_left_out:
        return of_operation(finding, evidence)
    if evidence.is_of_most_samples:
        return of_all_inputs(evidence)
    if evidence.is_of_random_samples:
        return of_random_inputs(evidence)
    if evidence.is_of_inputs and (samples or evidence.bad_keys()):
        return of_inputs(evidence, samples)
    if growth is not None and exceeds(growth, finding):
        return Diagnosis(*explain_growth(growth, evidence), growth=growth)
    if finding is not None and finding.phase == 'weight' and finding.keys:
        return of_weights(finding)
    if finding is not None and finding.phase != 'weight':
        if samples:
            return of_samples(finding, samples)
        is_explained = finding.is_certain or cure_of(finding)
        if growth is None or is_explained:
            return with_suspects(of_operation(finding, evidence), evidence)
    if samples:
        return of_inputs(evidence, samples)
    if evidence.bad_keys():
        return of_likely_inputs(evidence)
    if growth is not None:
        return Diagnosis(*explain_growth(growth, evidence), growth=growth)
    return of_unknown(evidence, general)


def exceeds(growth: Growth, finding: Optional[Autopsy]) -> bool:
    """Whether a growth explains more than the operation that went bad.

    The loss grows near a pole, too, if by less than in an explosion.
    """
    if finding is not None and finding.is_certain:
        return growth.factor >= LEAST_GROWTH_AT_POLE
    return growth.factor > 0


def of_inputs(evidence: Evidence, samples: Sequence[str]) -> Diagnosis:
    """Return the diagnosis of a batch that was bad to begin with."""
    keys = ', '.join(map(repr, evidence.bad_keys())) or 'the batch'
    bad = evidence.with_bad_inputs(samples) or samples
    whose = f' of {samples_in_words(bad)}' if bad else ''
    share = evidence.bad_share
    has_many = share >= LEAST_SHARE
    short = f'mend {keys}{whose}, or leave it out'
    what = 'Mend these samples or leave them out (mmnanguard.ExcludeSamples)'
    if has_many:
        short = f'clean {keys}, or fill in what is missing'
        what = (
            f'That is {share:.0%} of the samples since the first of them, '
            'a lot to leave out (mmnanguard.ExcludeSamples): clean the data, '
            'or put a number in the place of what is missing'
        )
    return Diagnosis(
        f'{keys}{whose} is not finite to begin with',
        Advice(
            short,
            f'The data are at fault, not the model, where {keys}{whose} is '
            f'not finite to begin with. {what}; mmnanguard.InputGuardHook '
            f'names all of them. {IF_MISSING} No loss scale, no clipping and '
            'no smaller learning rate can help.',
        ),
        tuple(samples),
        keeps_samples=has_many,
    )


def of_masked(keys: Sequence[str]) -> Diagnosis:
    """Return the diagnosis of inputs without which nothing went bad."""
    names = ', '.join(map(repr, keys))
    return Diagnosis(
        f'{names} is not finite, but loss and gradients were when replayed',
        Advice(
            f'leave {names} out of InputGuardHook',
            f'The model seems to mask {names} on purpose, for loss and '
            'gradients were finite when replayed. List the other parts in '
            "InputGuardHook(keys=...), or set action='explain'.",
        ),
    )


def of_all_inputs(evidence: Evidence) -> Diagnosis:
    """Return the diagnosis of inputs that are bad in most samples."""
    keys = ', '.join(map(repr, evidence.bad_keys())) or 'the batch'
    return Diagnosis(
        f'{keys} is not finite to begin with in most samples',
        Advice(
            f'look at the code that makes {keys}, such as a normalization',
            f'{keys} is not finite to begin with in most of the samples seen, '
            'so that no few samples are at fault: look at the code that '
            'makes it, such as a normalization by a standard deviation of 0 '
            f'or the loading of files. {IF_MISSING}',
        ),
    )


def of_random_inputs(evidence: Evidence) -> Diagnosis:
    """Return the diagnosis of inputs that are bad now and then."""
    keys = ', '.join(map(repr, evidence.bad_keys())) or 'the batch'
    return Diagnosis(
        f'{keys} is not finite to begin with, of samples that were fine in '
        'other batches',
        Advice(
            f'look at the code that makes {keys}, such as an augmentation',
            f'{keys} is not finite to begin with, but most of the samples '
            'that came again were fine then, so that their files are sound: '
            'look at the code that makes it, such as a random crop or change '
            'of colors, or a race of data loading.',
        ),
    )


def of_likely_inputs(evidence: Evidence) -> Diagnosis:
    """Return the diagnosis of bad parts of batches that nothing has tried."""
    keys = ', '.join(map(repr, evidence.bad_keys()))
    suspects = evidence.suspects()
    who = ''
    if suspects:
        who = f' of {samples_in_words(suspects)}'
    late = ''
    is_of_gradients = facts_of_cause(evidence.cause).blames == 'gradient'
    if is_of_gradients and evidence.has_finite_loss:
        late = (
            ' The loss is finite: if it leaves them out, do so before '
            'anything is computed with them, for 0 times NaN in its '
            'derivative is NaN.'
        )
    return Diagnosis(
        f'{keys}{who} is not finite to begin with',
        Advice(
            f'look at {keys}{who} first',
            f'{keys}{who} is not finite in the rejected batches: look there '
            'first, unless the model masks such numbers on purpose. '
            'mmnanguard.InputGuardHook names the samples, and '
            'mmnanguard.AutopsyHook tells whether they are the cause.' + late,
        ),
    )


def of_samples(finding: Autopsy, samples: Sequence[str]) -> Diagnosis:
    """Return the diagnosis of samples for which an operation goes bad."""
    # Not a cure: in float32, the huge gradients of an outlier would count.
    advice = advise_without_cures(finding)
    sentences = [
        f'Nearly all rejected batches hold {samples_in_words(samples)}: look '
        'at it, mend it or leave it out (mmnanguard.ExcludeSamples).',
        advice.long,
    ]
    # The samples are finite, and the next ones may be as near to its pole.
    if finding.is_certain:
        sentences.reverse()
    return Diagnosis(
        finding.finding(),
        Advice(advice.short, ' '.join(sentences), advice.long),
        tuple(samples),
        finding,
        keeps_samples=finding.is_certain,
    )


def of_operation(finding: Autopsy, evidence: Evidence) -> Diagnosis:
    """Return the diagnosis of an operation that an autopsy found."""
    advice = advise_on(finding)
    is_early = bool(evidence.events) and evidence.events[0].iter == 1
    if finding.is_kept and finding.keys and is_early:
        names = ', '.join(map(repr, finding.keys))
        advice = Advice(
            f'look where {names} is set',
            f'{names} was not finite in the first iteration already: look at '
            'the code that sets it, such as a division by the frequency of a '
            'class that is absent. If a batch has spoiled it, make it a '
            'buffer (register_buffer): a rejected update puts parameters and '
            'buffers back, but no plain attributes.',
        )
    return Diagnosis(finding.finding(), advice, operation=finding)


def with_suspects(diagnosis: Diagnosis, evidence: Evidence) -> Diagnosis:
    """Return the diagnosis of an operation, with the samples it may meet."""
    suspects = evidence.suspects()
    finding = diagnosis.operation
    # A cure that was tried says more than the presence of samples.
    if not suspects or finding is None or cure_of(finding):
        return diagnosis
    some = 'some of ' * (len(suspects) > 1)
    advice = diagnosis.advice
    long = (
        f'{advice.long} Each rejected batch holds {some}'
        f'{samples_in_words(suspects)}: look there as well.'
    )
    return diagnosis._replace(
        advice=replace(advice, long=long), suspects=suspects
    )


def of_weights(finding: Autopsy) -> Diagnosis:
    """Return the diagnosis of a tensor that is bad before the update."""
    names = ', '.join(map(repr, finding.keys))
    return Diagnosis(
        f'{names} is not finite to begin with',
        Advice(
            f'mend {names}, which is not finite before the update',
            f'{names} of the model is not finite before the update, so that '
            'neither the data nor the learning rate make it so. Look where '
            'it is set: __init__, a pretrained file, or code that writes it '
            'outside of the optimizer.',
        ),
        operation=finding,
    )


def of_unknown(evidence: Evidence, general: Advice) -> Diagnosis:
    """Return the diagnosis without evidence beyond the cause."""
    for autopsy in evidence.autopsies:
        if not autopsy.repeats:
            return Diagnosis(TRANSIENT, ADVICE_ON_TRANSIENT)
        advice = cure_of(autopsy)
        if advice is not None:
            return Diagnosis(autopsy.tried_in_words(), advice)
    suspects = evidence.suspects()
    if suspects:
        who = samples_in_words(suspects)
        some = 'some of ' * (len(suspects) > 1)
        return Diagnosis(
            f'each rejected batch holds {some}{who}',
            Advice(
                f'look at {who} first',
                f'Each rejected batch holds {some}{who}: look there first. '
                f'{general.long}',
            ),
        )
    return Diagnosis('where it begins is not known', general)
