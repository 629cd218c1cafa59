from dataclasses import replace
from typing import Callable

from ..causes import CAUSES, Cause
from ..clipping.clip_rule import NoClip
from .lr_backoff import recover
from .observation import LeftOut, Observation
from .policy import GuardPolicy
from .spike import Spike
from .state import GuardState
from .verdict import Action, ScaleMove, Verdict

__all__ = ['decide', 'find_cause']


def decide(
    seen: Observation,
    state: GuardState,
    policy: GuardPolicy,
    clip: Callable[[float], float] = NoClip(),
) -> Verdict:
    """Judge one update; a pure function of facts that all ranks share.

    Args:
        seen: What this update looks like.
        state: What was before it.
        policy: The rules.
        clip: Gives the clip coefficient for a finite norm.
    """
    cause = find_cause(seen, state, policy)
    if cause is Cause.NONE:
        verdict = judge_finite(seen, state, policy, clip)
        if seen.left_out is None or verdict.action is not Action.STEP:
            return verdict
        return committed_without(seen.left_out, verdict, state, policy)
    lowers = cause.is_scaled and seen.scale.lower_is_due
    return Verdict(
        choose_action(cause, state, policy),
        cause,
        ScaleMove.LOWER if lowers else ScaleMove.KEEP,
    )


def judge_finite(
    seen: Observation,
    state: GuardState,
    policy: GuardPolicy,
    clip: Callable[[float], float],
) -> Verdict:
    """Commit a clean update, unless the run diverges or it is a spike that is
    skipped.
    """
    spike = None
    if policy.divergence is not None:
        rise = policy.divergence.find(state.loss_level, seen.loss)
        if rise is not None:
            action = choose_action(Cause.DIVERGENCE, state, policy)
            return Verdict(action, Cause.DIVERGENCE, spike=rise)
    if policy.spike is not None:
        spike = policy.spike.find(
            seen, state.recent_norms, state.recent_losses
        )
        if spike is not None and policy.spike.action == 'skip':
            action = choose_action(Cause.SPIKE, state, policy)
            return Verdict(action, Cause.SPIKE, spike=spike)
    norm = seen.grad_norm if seen.clip_norm is None else seen.clip_norm
    coef = clip(norm)
    if spike is not None and seen.grad_norm > 0:
        usual = sum(state.recent_norms) / len(state.recent_norms)
        coef = min(coef, usual / seen.grad_norm)
    backoff = recover(state.lr_factor, state.lr_return)
    rule = policy.lr_backoff
    if rule is not None and seen.grad_norm > rule.above:
        backoff = rule.lower(state.lr_factor)
        if spike is None and backoff[0] < state.lr_factor:
            spike = Spike('grad_norm', seen.grad_norm, rule.above)
    return Verdict(
        Action.STEP,
        Cause.NONE if spike is None else Cause.SPIKE,
        ScaleMove.GROW if seen.scale.growth_is_due else ScaleMove.KEEP,
        coef,
        spike,
        *backoff,
    )


def committed_without(
    left_out: LeftOut, verdict: Verdict, state: GuardState, policy: GuardPolicy
) -> Verdict:
    """The scale moves by what was left out, which a lower one may cure; and
    of ``max_skip_rate`` the update is a skip.
    """
    cause = find_cause(left_out.seen, state, policy)
    move = verdict.scale_move
    if cause.is_scaled:
        lowers = left_out.seen.scale.lower_is_due
        move = ScaleMove.LOWER if lowers else ScaleMove.KEEP
    is_over = not cause.is_routine and rate_is_over(state, policy)
    action = Action(policy.when_exhausted) if is_over else verdict.action
    return replace(verdict, action=action, cause=cause, scale_move=move)


def find_cause(
    seen: Observation, state: GuardState, policy: GuardPolicy
) -> Cause:
    """The most fundamental cause: bad weights or inputs explain a bad loss,
    a bad forward pass explains bad gradients, never the other way round.
    """
    if not seen.weights_are_finite:
        return Cause.WEIGHT_NONFINITE
    if not seen.input_is_finite:
        return Cause.INPUT_NONFINITE
    if not seen.loss_is_finite:
        return Cause.LOSS_NONFINITE
    if not seen.buffers_are_finite:
        return Cause.BUFFER_NONFINITE
    if not seen.grad_is_finite:
        is_routine = (
            seen.scale.value > seen.scale.floor
            and state.commits_since_growth < policy.proven_after
        )
        return Cause.SCALE_OVERFLOW if is_routine else Cause.GRAD_NONFINITE
    if not seen.norm_is_bounded:
        return Cause.NORM_OVERFLOW
    return Cause.NONE


def choose_action(
    cause: Cause, state: GuardState, policy: GuardPolicy
) -> Action:
    facts = CAUSES[cause]
    if facts.is_routine:
        return Action.SKIP
    is_over = facts.ends_run or is_exhausted(state, policy)
    if not is_over:
        return Action.SKIP
    return Action(policy.when_exhausted)


def is_exhausted(state: GuardState, policy: GuardPolicy) -> bool:
    """Would one more skip reach a limit?"""
    streak, most = state.consecutive_skips + 1, policy.max_consecutive_skips
    if most is not None and streak >= most:
        return True
    # A window of nothing but skips is one streak: judged above.
    is_streak = all(state.with_skip(True))
    return not is_streak and rate_is_over(state, policy)


def rate_is_over(state: GuardState, policy: GuardPolicy) -> bool:
    """Would one more skip be too many of the last updates?"""
    if policy.max_skip_rate is None:
        return False
    recent = state.with_skip(True)
    return len(recent) == policy.skip_rate_window and sum(
        recent
    ) > policy.max_skip_rate * len(recent)
