"""The diagnosis of rejected updates: the evidence decides on the advice.

The story of a halt and the report both call :func:`diagnose`, so they never
contradict each other.
"""

import math
from dataclasses import dataclass
from typing import List, Mapping, NamedTuple, Optional, Sequence, Tuple

from .causes import Advice, facts_of_cause
from .culprit import samples_at_fault, suspects_among
from .rows.autopsy import Autopsy
from .rows.guard_event import GuardEvent
from .rows.input_row import InputRow
from .rows.json_numbers import JsonObject
from .rows.phrases import and_more
from .rules.recent_commits import Growth
from .step_advice import advise_on_step

__all__ = ['Diagnosis', 'Evidence', 'diagnose']

HALF_PRECISION = ('float16', 'bfloat16')
# Operations with a pole, and what to use in their place.
SAFE_OPS: Mapping[str, str] = {
    'log': 'safe_log',
    'log2': 'safe_log',
    'log10': 'safe_log',
    'div': 'safe_divide',
    'reciprocal': 'safe_divide',
    'sqrt': 'safe_sqrt',
    'rsqrt': 'safe_sqrt',
    'pow': 'safe_sqrt',
    '_softmax': 'masked_softmax',
}
TRANSIENT = 'the fault did not happen again when the update was replayed'
ADVICE_ON_TRANSIENT = Advice(
    'look for what a replay does not have',
    'The fault is transient, or made by what a replay does not have: hooks '
    'that change the batch, Python state, compiled code, the hardware.',
)
DERIVATIVES = 'safe_sqrt or safe_norm'


@dataclass(frozen=True)
class Evidence:
    """All that is known about a trouble, which is a group of rejections.

    Attributes:
        cause: The value of the most frequent cause.
        events: The rejected updates, oldest first.
        autopsies: The autopsies of these updates, or of earlier updates that
            had the same cause.
        inputs: The findings on their inputs.
        share: The share of rejected updates in the trouble.
    """

    cause: str
    events: Sequence[GuardEvent] = ()
    autopsies: Sequence[Autopsy] = ()
    inputs: Sequence[InputRow] = ()
    share: float = 1.0

    @property
    def has_scale(self) -> bool:
        """Whether the last update had a loss scale."""
        return not self.events or self.events[-1].loss_scale is not None

    @property
    def growth(self) -> Optional[Growth]:
        """The explosion before the first of the updates, if there was one."""
        for event in self.events:
            if event.growth is not None:
                return read_growth(event.growth)
        return None

    @property
    def finding(self) -> Optional[Autopsy]:
        """The first autopsy that saw where the fault begins."""
        for autopsy in self.autopsies:
            if autopsy.repeats and autopsy.phase:
                return autopsy
        return None

    @property
    def is_of_inputs(self) -> bool:
        """Whether a check or an autopsy found the fault in the inputs."""
        if facts_of_cause(self.cause).is_of_inputs:
            return True
        return self.finding is not None and self.finding.phase == 'input'

    def samples(self) -> Tuple[str, ...]:
        """Return the samples at fault."""
        names: List[str] = []
        # An operation that went bad by itself clears the inputs, which may
        # hold NaN that the model masks on purpose.
        if self.is_of_inputs or self.finding is None:
            for row in self.inputs:
                names.extend(row.samples)
        batches = self.batches()
        names += samples_at_fault(self.autopsies, batches, self.share)
        return tuple(dict.fromkeys(names))

    def batches(self) -> List[Tuple[str, ...]]:
        """Return the names of the samples of each rejected update."""
        batches = []
        for event in self.events:
            if facts_of_cause(event.cause.value).is_of_batch:
                batches.append(event.samples)
        return batches

    def bad_keys(self) -> Tuple[str, ...]:
        """Return the parts of the batches that were not finite."""
        keys: List[str] = []
        for row in self.inputs:
            keys.extend(row.keys)
        # An event names the larger parts only.
        if keys:
            return tuple(dict.fromkeys(keys))
        for event in self.events:
            keys.extend(event.bad_keys)
        return tuple(dict.fromkeys(keys))


class Diagnosis(NamedTuple):
    """A reason with its evidence, and what to do about it.

    Attributes:
        reason: A clause; '' if the cause says all that is known.
        advice: The recommendation.
        samples: The samples at fault.
        operation: The autopsy that found the operation at fault, if any.
        growth: The explosion before it, if that is the reason.
    """

    reason: str
    advice: Advice
    samples: Tuple[str, ...] = ()
    operation: Optional[Autopsy] = None
    growth: Optional[Growth] = None


def diagnose(evidence: Evidence) -> Diagnosis:
    """Return the diagnosis that explains the evidence best."""
    facts = facts_of_cause(evidence.cause)
    general = facts.advice_for(evidence.has_scale)
    growth = evidence.growth
    if facts.is_of_step:
        return Diagnosis('', advise_on_step(evidence.events, general))
    # Weights that are bad already, a divergence and a spike say by themselves
    # what they are.
    if facts.ends_run or not (facts.is_replayable or growth):
        return Diagnosis('', general)
    finding, samples = evidence.finding, evidence.samples()
    if evidence.is_of_inputs and (samples or evidence.bad_keys()):
        return of_inputs(evidence, samples)
    if growth is not None:
        return of_growth(growth)
    if finding is not None and finding.phase != 'weight':
        if samples:
            return of_samples(finding, samples)
        return of_operation(finding)
    if samples:
        return of_inputs(evidence, samples)
    if evidence.bad_keys():
        return of_likely_inputs(evidence)
    return of_unknown(evidence, general)


def of_inputs(evidence: Evidence, samples: Sequence[str]) -> Diagnosis:
    """Return the diagnosis of a batch that was bad to begin with."""
    keys = ', '.join(map(repr, evidence.bad_keys())) or 'the batch'
    whose = ''
    if samples:
        whose = f" of sample '{samples[0]}'{and_more(len(samples) - 1)}"
    return Diagnosis(
        f'{keys}{whose} is not finite to begin with',
        Advice(
            f'mend {keys}{whose}, or leave it out',
            f'The data are at fault, not the model: {keys}{whose} is not '
            'finite to begin with. Mend these samples or leave them out '
            '(mmnanguard.ExcludeSamples); mmnanguard.InputGuardHook names '
            'all of them. No loss scale, no clipping and no smaller learning '
            'rate can help.',
        ),
        tuple(samples),
    )


def of_likely_inputs(evidence: Evidence) -> Diagnosis:
    """Return the diagnosis of bad parts of batches that nothing has tried."""
    keys = ', '.join(map(repr, evidence.bad_keys()))
    suspects = suspects_among(evidence.batches())
    who = ''
    if suspects:
        who = f" of sample '{suspects[0]}'{and_more(len(suspects) - 1)}"
    return Diagnosis(
        f'{keys}{who} is not finite to begin with',
        Advice(
            f'look at {keys}{who} first',
            f'{keys}{who} is not finite in the rejected batches: look there '
            'first, unless the model masks such numbers on purpose. '
            'mmnanguard.InputGuardHook names the samples, and '
            'mmnanguard.AutopsyHook tells whether they are the cause.',
        ),
    )


def of_growth(growth: Growth) -> Diagnosis:
    """Return the diagnosis of a run that exploded."""
    words = growth.words()
    rate = ''
    if math.isfinite(growth.lr):
        rate = f' at a learning rate of {growth.lr:.3g}'
    clip = 'optim_wrapper.clip_grad=dict(max_norm=...)'
    if math.isfinite(growth.usual_norm) and growth.usual_norm > 0:
        clip = (
            'optim_wrapper.clip_grad=dict('
            f'max_norm={growth.usual_norm:.2g}), the usual norm before'
        )
    if growth.clip_coef < 1:
        clip = 'optim_wrapper.clip_grad to a lower norm than now'
    return Diagnosis(
        f'the run exploded before it: {words}{rate}',
        Advice(
            'lower the learning rate, lengthen warm-up, or clip',
            f'Before the first rejected update the numbers grew{rate}: '
            f'{words}. Lower the learning rate, lengthen warm-up, or set '
            f'{clip}.',
        ),
        growth=growth,
    )


def of_samples(finding: Autopsy, samples: Sequence[str]) -> Diagnosis:
    """Return the diagnosis of samples for which an operation goes bad."""
    who = f"sample '{samples[0]}'{and_more(len(samples) - 1)}"
    operation = of_operation(finding)
    return Diagnosis(
        operation.reason,
        Advice(
            f'look at {who}, or leave it out',
            f'Nearly all rejected batches hold {who}: look at it, mend it or '
            f'leave it out (mmnanguard.ExcludeSamples). '
            f'{operation.advice.long}',
        ),
        tuple(samples),
        finding,
    )


def of_operation(finding: Autopsy) -> Diagnosis:
    """Return the diagnosis of an operation that an autopsy found."""
    # What was tried and helped comes before what is known in general.
    advice = cure_of(finding) or pole_of(finding) or overflow_of(finding)
    return Diagnosis(finding.finding(), advice, operation=finding)


def cure_of(finding: Autopsy) -> Optional[Advice]:
    """Return the advice that a replay has tried with success, if any."""
    helped = {cure for cure, is_finite in finding.tried.items() if is_finite}
    if finding.remedy and finding.module:
        helped.add('module_fp32')
    where = finding.module
    if 'lower_scale' in helped:
        return Advice(
            'lower optim_wrapper.loss_scale',
            'Only the loss scale is too high: run again at the lowest scale, '
            'the update is finite. Lower optim_wrapper.loss_scale, or train '
            "with optim_wrapper.dtype='bfloat16', which needs none.",
        )
    if 'module_fp32' in helped:
        return Advice(
            f"run '{where}' in float32",
            f"Run '{where}' in float32, which was tried and is finite: "
            "default_hooks=dict(fp32=dict(type='mmnanguard.Fp32ModulesHook', "
            f'modules=[{finding.module!r}])).',
        )
    if 'bfloat16' in helped:
        return Advice(
            "set optim_wrapper.dtype='bfloat16'",
            "Set optim_wrapper.dtype='bfloat16', which was tried and is "
            'finite.',
        )
    if 'fp32' in helped or finding.fp32_is_finite:
        return Advice(
            'train in float32',
            'In float32 the update is finite, which was tried: train with '
            'mmnanguard.NanGuardOptimWrapper, or find the modules to run in '
            'float32 (mmnanguard.Fp32ModulesHook).',
        )
    return None


def pole_of(finding: Autopsy) -> Optional[Advice]:
    """Return the advice on an operation that is not defined for its input."""
    if not finding.is_pole:
        return None
    where = finding.source or finding.module_type
    if not all(map(math.isfinite, finding.operands)):
        return Advice(
            f'look at the number that the code at {where} computes with',
            f'The code at {where} passes a number to {finding.op} that is not '
            'finite, such as a weight of the loss: look where it comes from.',
        )
    name = finding.op.split('.')[-1].rstrip('_')
    safe = SAFE_OPS.get(name, 'the safe operations')
    derivative = ''
    if finding.phase == 'backward':
        safe = DERIVATIVES
        derivative = ', the derivative of that line,'
    return Advice(
        f'keep the input of {finding.op} at {where} away from its pole',
        f'{finding.op} at {where}{derivative} is not defined for this input, '
        'which is no overflow: no dtype, no loss scale and no clipping '
        f'changes that. Add an epsilon, clamp, or use {safe} of '
        'mmnanguard.numerics.',
    )


def overflow_of(finding: Autopsy) -> Advice:
    """Return the advice on an overflow that no cure has helped against."""
    where = finding.source or finding.module_type
    limit = f'{finding.dtype_max:.3g} of {finding.dtype}'
    if finding.dtype in HALF_PRECISION and not finding.tried:
        return Advice(
            'try float32 for the module at fault',
            f'{finding.op} at {where} is beyond {limit}; whether float32 or '
            'bfloat16 helps was not tried: mmnanguard.AutopsyHook('
            'try_cures=True) tries it.',
        )
    return Advice(
        f'look at the numbers that reach {finding.op} at {where}',
        f'{finding.op} at {where} got numbers of up to '
        f'{finding.input_absmax:.3g} and is beyond the {limit}: normalize '
        'or clamp its input, or look for weights that have grown.',
    )


def of_unknown(evidence: Evidence, general: Advice) -> Diagnosis:
    """Return the diagnosis without evidence beyond the cause."""
    for autopsy in evidence.autopsies:
        if not autopsy.repeats:
            return Diagnosis(TRANSIENT, ADVICE_ON_TRANSIENT)
        advice = cure_of(autopsy)
        if advice is not None:
            return Diagnosis(autopsy.tried_in_words(), advice)
    suspects = suspects_among(evidence.batches())
    if suspects:
        who = f"sample '{suspects[0]}'{and_more(len(suspects) - 1)}"
        return Diagnosis(
            f'{who} is in each rejected batch',
            Advice(
                f'look at {who} first',
                f'Each rejected batch holds {who}: look there first. '
                f'{general.long}',
            ),
        )
    return Diagnosis('where it begins is not known', general)


def read_growth(saved: JsonObject) -> Optional[Growth]:
    """Return the growth of a row; None if another version wrote it."""
    try:
        return Growth(**saved)
    except TypeError:
        return None
