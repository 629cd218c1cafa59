"""The decision: observation, state and policy give a verdict.

``decide`` is a pure function. All ranks call it with equal facts, so they
reach equal verdicts without a further exchange.
"""

from dataclasses import replace
from typing import Callable, Optional, Tuple

from ..causes import CAUSES, Cause
from ..clipping.clip_rule import NoClip
from .judge_scale import judge_scale, returned_scale
from .observation import USUAL_FLOOR, LeftOut, Observation, ScaleReading
from .policy import GuardPolicy
from .recent_commits import find_growth
from .spike import Spike
from .state import GuardState
from .verdict import Action, ScaleMove, Verdict

__all__ = [
    'MOST_HARMLESS',
    'decide',
    'fails_again',
    'find_cause',
    'is_over',
    'starves_without',
]

# Number of harmless updates that are rejected, less one for each ten commits.
# Few, because a run without a guard learns from each of them; more than the
# milder cures need, which judge micro-batches apart after 4 such windows and
# let keys that a model masks pass after 3.
MOST_HARMLESS = 6
# Number of rejected updates in a row whose common reason may be a buffer that
# each of them puts back. Fewer may just hold bad samples.
NUM_FAILED = 4


def decide(
    seen: Observation,
    state: GuardState,
    policy: GuardPolicy,
    clip: Callable[[float], float] = NoClip(),
) -> Verdict:
    """Judge one update; a pure function of facts that all ranks share.

    Args:
        seen: The facts about this update.
        state: The state of the guard before this update.
        policy: The rules.
        clip: The clip rule: a finite norm in, a coefficient out.
    """
    cause = find_cause(seen, state, policy)
    if cause is Cause.NONE:
        verdict = judge_finite(seen, state, policy, clip)
        if seen.left_out is None or verdict.action is not Action.STEP:
            return verdict
        return committed_without(seen.left_out, verdict, state, policy)
    if starves_without(seen, state):
        return committed_all_the_same(seen, state, policy, clip)
    if not does_harm(cause, seen):
        return Verdict(Action.SKIP, cause, counts=False, blames_scale=False)
    action = choose_action(cause, seen, state, policy)
    verdict = Verdict(action, cause)
    return with_scale_move(verdict, seen, state, policy)


def judge_finite(
    seen: Observation,
    state: GuardState,
    policy: GuardPolicy,
    clip: Callable[[float], float],
) -> Verdict:
    """Judge an update whose numbers are all finite.

    It is committed, unless the run diverges or the policy skips spikes and
    the update is a spike.
    """
    # Divergence first: it ends the run, whatever becomes of this update.
    if policy.divergence is not None:
        rise = policy.divergence.find(
            state.loss_level, seen.loss, state.recent_commits, seen.grad_norm
        )
        if rise is not None:
            action = choose_action(Cause.DIVERGENCE, seen, state, policy)
            # A loss may rise by design: a rollback needs more evidence.
            waits = state.loss_level.needs_trial
            if action is not Action.ROLLBACK or not waits:
                return Verdict(action, Cause.DIVERGENCE, spike=rise)
    spike = None
    if policy.spike is not None:
        spike = policy.spike.find(
            seen, state.recent_norms, state.recent_losses
        )
        if spike is not None and policy.spike.action == 'skip':
            action = choose_action(Cause.SPIKE, seen, state, policy)
            return Verdict(action, Cause.SPIKE, spike=spike)
    coef = choose_clip_coef(seen, state, spike, clip)
    lr_factor, lr_return = state.recovered_lr()
    rule = policy.lr_backoff
    if rule is not None and seen.grad_norm > rule.above:
        lr_factor, lr_return = rule.lower(state.lr_factor)
        # A factor that stays at its floor was reported when it came down.
        if spike is None and lr_factor < state.lr_factor:
            spike = Spike('grad_norm', seen.grad_norm, rule.above)
    cause = Cause.NONE
    if spike is not None:
        cause = Cause.SPIKE
    move, scale_to = ScaleMove.KEEP, None
    if seen.scale.growth_is_due:
        move = ScaleMove.GROW
    home = seen.scale.home
    if home is not None and seen.scale.value < home:
        scale_to = returned_scale(seen, state, policy)
        if scale_to is not None:
            move = ScaleMove.RETURN
    return Verdict(
        Action.STEP,
        cause,
        move,
        coef,
        spike,
        lr_factor,
        lr_return,
        scale_to=scale_to,
    )


def starves_without(seen: Observation, state: GuardState) -> bool:
    """Whether an update with a bad loss is committed all the same.

    Its loss is not finite, and those of many other updates are not, but its
    gradients are, and they teach something: a run without a guard learns from
    them.

    Args:
        seen: The facts about an update that is not clean.
        state: The state of the guard before this update.
    """
    # Gradients of micro-batches that were left out are gone.
    if seen.left_out is not None and seen.left_out.is_all:
        return False
    is_streak = state.harmless_skips >= MOST_HARMLESS
    return is_streak and seen.grad_norm > 0 and seen.only_loss_is_bad


def committed_all_the_same(
    seen: Observation,
    state: GuardState,
    policy: GuardPolicy,
    clip: Callable[[float], float],
) -> Verdict:
    """Return the verdict on an update that :func:`starves_without` tells."""
    # A loss that is not finite says nothing about spikes and divergence.
    policy = replace(policy, spike=None, divergence=None)
    verdict = judge_finite(seen, state, policy, clip)
    if seen.left_out is not None:
        return committed_without(seen.left_out, verdict, state, policy)
    cause = find_cause(seen, state, policy)
    return replace(
        verdict, cause=cause, spike=None, counts=False, blames_scale=False
    )


def choose_clip_coef(
    seen: Observation,
    state: GuardState,
    spike: Optional[Spike],
    clip: Callable[[float], float],
) -> float:
    """Return the factor for the gradients of an update that is committed."""
    norm = seen.clip_norm
    if norm is None:
        norm = seen.grad_norm
    coef = clip(norm)
    # A spike of the loss may have gradients of 0, which need no factor.
    if spike is not None and seen.grad_norm > 0:
        usual = sum(state.recent_norms) / len(state.recent_norms)
        # The user's clip rule may be stricter than the usual norm.
        coef = min(coef, usual / seen.grad_norm)
    return coef


def committed_without(
    left_out: LeftOut, verdict: Verdict, state: GuardState, policy: GuardPolicy
) -> Verdict:
    """Return the verdict on a commit that left out bad micro-batches.

    The cause is the cause of the micro-batches that were left out. The update
    counts as a skip in ``max_skip_rate``, so it may end the run, unless the
    micro-batches did no harm.

    Args:
        left_out: The micro-batches that were left out.
        verdict: The verdict on the rest of the window.
        state: The state of the guard before this update.
        policy: The rules.
    """
    cause = find_cause(left_out.seen, state, policy)
    verdict = replace(verdict, cause=cause)
    # An overflow that was left out needs a lower scale, although the rest of
    # the window fits the present one.
    if cause.is_scaled:
        verdict = with_scale_move(verdict, left_out.seen, state, policy)
    action, counts = verdict.action, does_harm(cause, left_out.seen)
    # Without a limit, a run in which every window loses micro-batches would
    # never end.
    if (
        counts
        and not cause.is_routine
        and rate_ends_run(left_out.seen, state, policy)
    ):
        action = Action(policy.when_exhausted)
    return replace(verdict, action=action, counts=counts)


def find_cause(
    seen: Observation, state: GuardState, policy: GuardPolicy
) -> Cause:
    """Return the most fundamental cause; NONE for a clean update.

    Bad weights or inputs explain a bad loss, and a bad forward pass explains
    bad gradients, never the other way round.
    """
    if not seen.last_step_is_finite:
        return Cause.STEP_SPOILED
    if not seen.weights_are_finite:
        return Cause.WEIGHT_NONFINITE
    if not seen.input_is_finite:
        return Cause.INPUT_NONFINITE
    if not seen.loss_is_finite:
        return Cause.LOSS_NONFINITE
    if not seen.buffers_are_finite:
        return Cause.BUFFER_NONFINITE
    if not seen.grad_is_finite:
        # At the floor nothing can be lowered, and below 1 hardly anything, so
        # the overflow is not routine.
        floor = max(seen.scale.floor, USUAL_FLOOR)
        is_above_floor = seen.scale.value > floor
        # Gradients that have long fitted this scale go bad for another reason.
        is_proven = state.commits_since_growth >= policy.proven_after
        is_new = is_above_floor and not is_proven
        if is_new and judge_scale(seen, state, policy).is_blamed:
            return Cause.SCALE_OVERFLOW
        return Cause.GRAD_NONFINITE
    if not seen.norm_is_bounded:
        return Cause.NORM_OVERFLOW
    if not seen.step_is_finite:
        return Cause.STEP_NONFINITE
    return Cause.NONE


def does_harm(cause: Cause, seen: Observation) -> bool:
    """Whether the rejected update would have harmed the model.

    A loss of 0/0 over ignored labels has gradients of 0, and a model may mask
    a NaN before it reaches a gradient.
    """
    if not CAUSES[cause].harms_by_gradient:
        return True
    # Without any gradient, finite gradients show nothing.
    return not (
        seen.num_params > 0
        and seen.grad_is_finite
        and seen.norm_is_bounded
        and seen.buffers_are_finite
        and seen.step_is_finite
    )


def fails_again(seen: Observation, cause: Cause, state: GuardState) -> bool:
    """Whether update after update fails in the model, on sound inputs.

    Args:
        seen: The facts about an update, or micro-batch, that is rejected.
        cause: The cause of its rejection.
        state: The state of the guard before it.
    """
    return (
        state.consecutive_skips + 1 >= NUM_FAILED
        and seen.input_is_finite
        and not (seen.loss_is_finite and seen.grad_is_finite)
        and not cause.is_routine
        and does_harm(cause, seen)
    )


def with_scale_move(
    verdict: Verdict, seen: Observation, state: GuardState, policy: GuardPolicy
) -> Verdict:
    """Return a verdict with the move of the scale after a bad update.

    Args:
        verdict: The verdict, with its cause.
        seen: The bad update, or its micro-batches that were left out.
        state: The state of the guard before the update.
        policy: The rules.
    """
    move = ScaleMove.KEEP
    if not verdict.cause.is_scaled:
        return replace(verdict, scale_move=move, scale_to=None)
    # Beside a bad loss, gradients may be fine.
    if seen.grad_is_finite and seen.norm_is_bounded:
        return replace(
            verdict, scale_move=move, scale_to=None, blames_scale=False
        )
    # A norm that overflows float32 over finite elements carries the scale.
    if seen.grad_is_finite or seen.scale == ScaleReading():
        if seen.scale.lower_is_due:
            move = ScaleMove.LOWER
        return replace(verdict, scale_move=move, scale_to=None)
    judgement = judge_scale(seen, state, policy)
    return replace(
        verdict,
        scale_move=judgement.move,
        scale_to=judgement.to,
        blames_scale=judgement.is_blamed,
    )


def choose_action(
    cause: Cause, seen: Observation, state: GuardState, policy: GuardPolicy
) -> Action:
    """Return the action on an update that is not committed."""
    facts = CAUSES[cause]
    # First, because a routine overflow counts toward no limit.
    if facts.is_routine:
        return Action.SKIP
    if facts.ends_run or is_exhausted(seen, state, policy):
        return Action(policy.when_exhausted)
    return Action.SKIP


def is_exhausted(
    seen: Observation, state: GuardState, policy: GuardPolicy
) -> bool:
    """Whether one more skip reaches a limit of the policy."""
    streak, most = state.consecutive_skips + 1, policy.max_consecutive_skips
    if most is not None and streak >= most:
        return True
    # A window of nothing but skips is one streak, and was judged above. With
    # max_consecutive_skips=None such a streak must not end the run.
    is_streak = all(state.with_skip(True))
    return not is_streak and rate_ends_run(seen, state, policy)


def rate_ends_run(
    seen: Observation, state: GuardState, policy: GuardPolicy
) -> bool:
    """Whether the share of skips, with one more skip, ends the run.

    With a loss scale, MMEngine skips bad gradients, too, and learns from the
    other updates, as long as they do not explode.
    """
    is_skipped_anyway = seen.scale != ScaleReading() and not (
        seen.grad_is_finite or policy.has_own_skip_rate
    )
    if is_skipped_anyway and find_growth(state.recent_commits) is None:
        return False
    return is_over(state.with_skip(True), policy)


def is_over(skips: Tuple[bool, ...], policy: GuardPolicy) -> bool:
    """Whether the share of skips among recent updates is above its limit."""
    # A share of a few updates says nothing.
    if policy.max_skip_rate is None or len(skips) != policy.skip_rate_window:
        return False
    return sum(skips) > policy.max_skip_rate * len(skips)
