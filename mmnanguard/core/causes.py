"""The causes of an update that was not a plain step, and all facts about them.

:data:`CAUSES` is the one place with everything that depends on a cause. The
decision, the hooks and the report read it instead of comparing causes, so that
a new cause needs an entry here and a rule that finds the cause
(CONTRIBUTING.md, "Adding a cause").
"""

import enum
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Mapping, Optional, Tuple

__all__ = [
    'CAUSES',
    'UNKNOWN',
    'Advice',
    'Cause',
    'CauseFacts',
    'facts_of_cause',
]

Culprit = Literal['sample', 'module', 'parameter']


class Cause(enum.Enum):
    """The cause of an update that was not a plain step.

    The members stand in the order of precedence: the most fundamental cause
    comes first, because it explains the causes after it.
    """

    # The values are in event rows, so they never change.
    NONE = 'none'
    STEP_SPOILED = 'step_spoiled_weights'
    WEIGHT_NONFINITE = 'weight_nonfinite'
    INPUT_NONFINITE = 'input_nonfinite'
    LOSS_NONFINITE = 'loss_nonfinite'
    BUFFER_NONFINITE = 'buffer_nonfinite'
    SCALE_OVERFLOW = 'scale_overflow'
    GRAD_NONFINITE = 'grad_nonfinite'
    NORM_OVERFLOW = 'norm_overflow'
    STEP_NONFINITE = 'step_nonfinite'
    DIVERGENCE = 'divergence'
    SPIKE = 'spike'

    @property
    def is_scaled(self) -> bool:
        """Whether a lower scale may cure bad gradients; False for NONE."""
        # CAUSES has no entry for NONE.
        return self is not Cause.NONE and CAUSES[self].is_scaled

    @property
    def is_routine(self) -> bool:
        """Whether the cause is no anomaly at all; False for NONE."""
        return self is not Cause.NONE and CAUSES[self].is_routine


@dataclass(frozen=True)
class Advice:
    """The recommendation for a run that suffers from a cause.

    Attributes:
        short: A clause in the imperative, for the report's assessment.
        long: Full sentences, for the story of a halt.
        detail: Full sentences, for the report's list of steps. If empty,
            the list has ``long``.
    """

    short: str
    long: str
    detail: str = ''


@dataclass(frozen=True)
class CauseFacts:
    """Everything that depends on a cause.

    Attributes:
        line: The template of the start of the console line, whose words
            ``event_words`` fills in.
        brief: A template with fewer words, for a line with little room; ''
            means ``line``.
        advice: The recommendation.
        color: CSS color in the report's figure and table.
        blames: The tensors that an event names: bad weights, bad buffers, bad
            gradients, or the largest gradient if no gradient is bad.
        culprits: The kinds of culprit that the report may name. If samples
            are not among them, the report gives the general advice before
            all other steps.
        unscaled_advice: The recommendation for a run without a loss scale;
            None means ``advice``.
        is_scaled: Whether a lower loss scale may make bad gradients finite.
            It cannot cure what goes wrong in the forward pass, but gradients
            may overflow beside it.
        is_routine: Whether the cause is an expected part of training with a
            loss scale. Such an update is always skipped, counts toward no
            limit and does not make a run look sick.
        ends_run: Whether the run halts or rolls back at once, whatever the
            limits are.
        is_gradual: Whether the trouble built up over the window of the
            divergence rule. Then no batch is worth a dump, and a rollback
            goes back to a state before that window.
        is_of_batch: Whether the samples of the batch are suspects.
        is_of_inputs: Whether a check has found that the batch itself is bad.
        is_replayable: Whether a replay can find where the fault begins. That
            takes a tensor that is not finite. If False, ``culprits`` has no
            module.
        names_origin: Whether the first tensor that an event names is close to
            the origin, so that the report counts how often it is named.
        adds_up: Whether many such updates make a run look sick even if no
            parameter is named.
        is_of_step: Whether the optimizer is at fault, which an event then
            describes.
        was_committed: Whether an earlier commit did the damage.
        harms_by_gradient: Whether the fault can do harm only through bad
            gradients. A rejected update whose gradients are finite then
            counts toward no limit: MMEngine would have trained on.
        is_explosion: Whether finite numbers grew too large. After commits,
            the learning rate is the suspect.
    """

    line: str
    advice: Advice
    color: str
    blames: Literal['weight', 'buffer', 'gradient', 'largest gradient', '']
    brief: str = ''
    culprits: Tuple[Culprit, ...] = ('sample', 'module', 'parameter')
    unscaled_advice: Optional[Advice] = None
    is_scaled: bool = False
    is_routine: bool = False
    ends_run: bool = False
    is_gradual: bool = False
    is_of_batch: bool = True
    is_of_inputs: bool = False
    is_replayable: bool = True
    names_origin: bool = True
    adds_up: bool = True
    is_of_step: bool = False
    was_committed: bool = False
    harms_by_gradient: bool = False
    is_explosion: bool = False

    def advice_for(self, has_scale: bool) -> Advice:
        """Return the advice for a run with or without a loss scale."""
        if has_scale or self.unscaled_advice is None:
            return self.advice
        return self.unscaled_advice


FIND_OUT = (
    'mmnanguard.AutopsyHook (in --guard full) names the operation, its line '
    'and its samples, and tries what helps.'
)
BAD_GRADIENT = 'gradient of {name} is {kind} ({of_all})'

BAD_STEP = (
    'The gradients were finite, and the optimizer made NaN or Inf of them: '
    'look at its arguments. eps=0 divides by 0 where a gradient was always 0 '
    '(set eps=1e-8), centered=True takes the root of a rounded difference '
    '(set centered=False), sums of squares overflow under huge gradients (set '
    'optim_wrapper.clip_grad=dict(max_norm=...)), and a schedule may make lr, '
    'betas or weight_decay NaN or Inf (look at param_scheduler).'
)

CAUSES: Mapping[Cause, CauseFacts] = MappingProxyType(
    {
        Cause.STEP_SPOILED: CauseFacts(
            line="the optimizer's step of iteration {step_iter} made {kind} "
            'of finite gradients ({stepper}): {tensor} {name} is '
            '{kind}{others}',
            brief='an earlier step made {tensor} {name} {kind}',
            advice=Advice(
                "change the optimizer's arguments, and resume from the last "
                'clean checkpoint',
                f'{BAD_STEP} Then resume from a checkpoint written before; '
                "optim_wrapper.guard.check_step='always' checks each step and "
                'undoes such a step.',
            ),
            color='#7f1d1d',
            blames='weight',
            culprits=('parameter',),
            # The next forward pass uses the same weights.
            ends_run=True,
            is_of_batch=False,
            is_of_step=True,
            was_committed=True,
        ),
        Cause.WEIGHT_NONFINITE: CauseFacts(
            line='{tensor} {name} is {kind}{others}, {origin}',
            brief='{tensor} {name} is {kind}',
            advice=Advice(
                'resume from the last clean checkpoint',
                'Resume from a checkpoint written before; look for code that '
                'changes weights outside optim_wrapper.step (hooks, EMA '
                'swaps, .data).',
            ),
            color='#a4161a',
            blames='weight',
            culprits=('parameter',),
            # A skip does not help: the next forward pass uses the same
            # weights. The damage was done before this batch.
            ends_run=True,
            is_of_batch=False,
        ),
        Cause.INPUT_NONFINITE: CauseFacts(
            line='the input is not finite',
            advice=Advice(
                'look at the samples of the rejected batches',
                'Look at the samples named above and remove or repair them.',
            ),
            color='#8e5bd0',
            blames='gradient',
            is_of_inputs=True,
            # A bad input spoils all gradients at once: the first one in the
            # event is near to the loss and not to the fault.
            names_origin=False,
            # A model may mask NaN in its input on purpose.
            harms_by_gradient=True,
        ),
        Cause.LOSS_NONFINITE: CauseFacts(
            line='loss is {loss_kind}{gradients}{parts}',
            advice=Advice(
                'find the operation with mmnanguard.AutopsyHook',
                'The forward pass makes it, which no lower loss scale '
                'changes; whether a number above the 65504 of float16 or an '
                f'operation does is not known. {FIND_OUT} Or try '
                "optim_wrapper.dtype='bfloat16' to find out.",
            ),
            # Without a loss scale, nothing runs in float16.
            unscaled_advice=Advice(
                'find the operation with mmnanguard.AutopsyHook',
                'The forward pass makes it, and no loss scale is involved; '
                f'in which operation is not known. {FIND_OUT}',
            ),
            color='#e15759',
            blames='gradient',
            # A bad loss spoils all gradients, or none (loss + inf).
            names_origin=False,
            is_scaled=True,
            # A mean over no labels is 0/0, and its gradients are 0.
            harms_by_gradient=True,
        ),
        Cause.BUFFER_NONFINITE: CauseFacts(
            line='forward made buffer {name} {kind}; the loss is finite',
            advice=Advice(
                'look at what forward writes into the buffer',
                'What forward writes into the buffer is not finite: an '
                'activation that is too large, or the code that computes it, '
                f'such as a mean over none. Which is not known. {FIND_OUT}',
            ),
            color='#17a2a2',
            # One sample of 3e38 makes running_var Inf and leaves the loss
            # and all gradients finite.
            blames='buffer',
        ),
        Cause.SCALE_OVERFLOW: CauseFacts(
            line=BAD_GRADIENT,
            advice=Advice(
                'start with a lower optim_wrapper.loss_scale',
                'The loss scale is still on its way down, which is routine: '
                'start with a lower optim_wrapper.loss_scale to save these '
                'updates.',
            ),
            color='#8d99ae',
            blames='gradient',
            # GradScaler starts at 2**16 and finds a scale that fits by
            # lowering it at each overflow: no sample is at fault.
            is_scaled=True,
            is_routine=True,
            is_of_batch=False,
        ),
        Cause.GRAD_NONFINITE: CauseFacts(
            line=BAD_GRADIENT,
            advice=Advice(
                'find the operation with mmnanguard.AutopsyHook',
                'The backward pass makes it of a finite loss; whether float16 '
                'or an operation does is not known. '
                f"{FIND_OUT} Or try optim_wrapper.dtype='bfloat16' to "
                'find out.',
            ),
            # Without a loss scale there is nothing to lower.
            unscaled_advice=Advice(
                'find the operation with mmnanguard.AutopsyHook',
                'The backward pass makes it of a finite loss, and no loss '
                'scale is at work that could be lowered; in which operation '
                f'is not known. {FIND_OUT}',
            ),
            color='#f28e2b',
            blames='gradient',
            is_scaled=True,
        ),
        Cause.NORM_OVERFLOW: CauseFacts(
            line='gradient norm overflows float32 with finite elements, '
            'largest in {name} ({of_all})',
            brief='gradient norm overflows, largest in {name}',
            advice=Advice(
                'lower the learning rate, lengthen warm-up, or clip',
                'Gradients explode: lower the learning rate, lengthen '
                'warm-up, or set '
                'optim_wrapper.clip_grad=dict(max_norm=...).',
            ),
            color='#b07aa1',
            # No element is bad, so the event names the largest gradient, and
            # a replay would find nothing.
            blames='largest gradient',
            culprits=('parameter',),
            is_replayable=False,
            # The norm is computed while gradients still carry the scale.
            is_scaled=True,
            is_explosion=True,
        ),
        Cause.STEP_NONFINITE: CauseFacts(
            line="the optimizer's step {step_fault} ({stepper})",
            brief='the step of {optimizer} {step_fault}',
            advice=Advice("change the optimizer's arguments", BAD_STEP),
            color='#a0522d',
            # The tensors that the step spoiled are named before it is undone.
            blames='',
            culprits=('parameter',),
            # Forward and backward passes are fine: a replay finds nothing.
            is_of_batch=False,
            is_replayable=False,
            names_origin=False,
            is_of_step=True,
        ),
        Cause.DIVERGENCE: CauseFacts(
            line='training diverges: the median loss is {value:.4g}, the '
            'limit {limit:.4g}, its lowest was {mean:.4g}',
            brief='training diverges: the median loss is {value:.4g}',
            advice=Advice(
                'lower the learning rate, lengthen warm-up, or clip',
                'What was learnt is being lost: lower the learning rate, '
                'lengthen warm-up, or clip; if losses rise by design, set '
                'optim_wrapper.guard.divergence=None.',
            ),
            color='#d6409f',
            # All numbers are finite, and many updates led to them: there is
            # no tensor to name, no batch to suspect and nothing to replay.
            blames='',
            culprits=(),
            # Only a return to an earlier state brings back what was learnt.
            ends_run=True,
            is_gradual=True,
            is_of_batch=False,
            is_replayable=False,
            names_origin=False,
        ),
        Cause.SPIKE: CauseFacts(
            line='{what} {value:.4g} is a spike: the limit is '
            '{limit:.4g}{usual}',
            advice=Advice(
                'lower the learning rate, or let spikes pass, clipped',
                'Norm or loss stay above what they were: lower the learning '
                'rate, or let spikes pass, clipped: '
                "optim_wrapper.guard.spike.action='clip'.",
            ),
            color='#d4a300',
            blames='largest gradient',
            culprits=(),
            # All numbers are finite: a replay would find nothing, and a
            # healthy run has spikes, too.
            is_replayable=False,
            names_origin=False,
            adds_up=False,
        ),
    }
)
# A row of another version may name a cause that is not in CAUSES.
UNKNOWN = CauseFacts(
    line=BAD_GRADIENT,
    advice=Advice('look at the rows of the events', ''),
    color='#6c757d',
    blames='gradient',
)


def facts_of_cause(name: str) -> CauseFacts:
    """Return the facts about the cause of a row.

    Args:
        name: The value of the row's key 'cause'. A name that this version
            does not know gets ``UNKNOWN``.
    """
    return FACTS_BY_NAME.get(name, UNKNOWN)


FACTS_BY_NAME = {cause.value: facts for cause, facts in CAUSES.items()}
