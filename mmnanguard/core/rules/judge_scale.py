"""The evidence for and against the loss scale as the cause of bad gradients.

Gradients that are not finite may have overflowed float16 because of the
scale, or may come from an operation such as a square root at 0, which no
scale cures. A loss that is not finite may explain them, but they may have
overflowed beside it. MMEngine's dynamic scale is lowered either way, and its
static scale never. Here the scale is lowered when an overflow is shown or
likely, and it comes back when that did not help.
"""

import math
from typing import TYPE_CHECKING, NamedTuple, Optional

from .observation import USUAL_FLOOR, Observation
from .recent_commits import NUM_RECENT_COMMITS
from .scale_trial import NUM_COMMITS_TO_TRUST, ScaleTrial
from .verdict import ScaleMove

if TYPE_CHECKING:
    from .policy import GuardPolicy
    from .state import GuardState

__all__ = ['ScaleJudgement', 'judge_scale', 'returned_scale']

FLOAT16_MAX = 65504.0
# The room of a scale is the factor by which the largest recent gradient norm
# is below float16's limit. An overflow needs a gradient larger by the room.
# Inf stays Inf in some element of nearly every overflow, so that NaN alone
# needs less room to be no overflow.
ROOM_FOR_NAN = 8.0
ROOM_FOR_NAN_OF_DYNAMIC = 1024.0
ROOM_FOR_INF = 2.0**20
# Numbers of streaks that have lowered the scale, and the room at which the
# next one shows that this did not help.
FEW_TRIES, ROOM_AFTER_FEW_TRIES = 3, 1024.0
MANY_TRIES, ROOM_AFTER_MANY_TRIES = 6, 8.0
# Room that a scale needs to be tried again, and the growth of gradients since
# it worked that does not matter.
ROOM_TO_RETURN = 2.0
SLACK_TO_RETURN = 2.0
# Number of commits after which a home with room that has never worked is tried
# for the first time. Bad updates between them do not matter.
NUM_COMMITS_TO_TRY = 8
# Number of steps by which a dynamic scale is lowered on trial at each bad
# update, and in all: 65536 becomes 16, at which gradients hardly underflow.
STEPS_OF_TRIAL, MOST_STEPS_OF_TRIAL = 3, 12
# Number of bad updates in a row that are no reason to lower the scale, at
# first and after it was found not to be the cause.
TOLERATED, TOLERATED_IF_CLEARED = 1, 6


class ScaleJudgement(NamedTuple):
    """The judgement on the scale of a bad update.

    Attributes:
        is_blamed: Whether the update counts as an overflow of the scale.
        move: The move of the scale.
        to: The scale that the move ends at; None for one step.
    """

    is_blamed: bool
    move: ScaleMove
    to: Optional[float] = None


def judge_scale(
    seen: Observation, state: 'GuardState', policy: 'GuardPolicy'
) -> ScaleJudgement:
    """Judge whether bad gradients are an overflow of the loss scale.

    The scale is lowered as by PyTorch's scaler unless there is evidence
    against: it has worked, recent gradients leave it room, and the bad
    updates do not go on. A dynamic scale needs more evidence, because
    MMEngine's own would be lowered, too: it is spared once and then lowered
    on trial.
    """
    trial, scale = state.scale_trial, seen.scale
    if is_innocent(seen, state, policy):
        target = None
        if trial.num_bad == 0:
            target = scale_before(seen, trial)
        if target is None:
            return ScaleJudgement(False, ScaleMove.KEEP)
        # The fault came back at a scale that has room.
        return ScaleJudgement(False, ScaleMove.RETURN, target)
    if not scale.lower_is_due:
        return ScaleJudgement(True, ScaleMove.KEEP)
    if trial.fitting > 0:
        return ScaleJudgement(True, ScaleMove.LOWER, trial.fitting)
    if trial.num_bad == 0 and trial.is_tried(seen.grad_fault):
        # An overflow, if any, is of single batches: find out soon.
        target = scale.value * scale.backoff**STEPS_OF_TRIAL
        return ScaleJudgement(True, ScaleMove.LOWER, max(target, scale.floor))
    if trial.num_kept > 0:
        # An overflow after all: catch up with PyTorch's scaler.
        target = scale.value * scale.backoff ** (trial.num_kept + 1)
        return ScaleJudgement(True, ScaleMove.LOWER, max(target, scale.floor))
    return ScaleJudgement(True, ScaleMove.LOWER)


def scale_before(seen: Observation, trial: ScaleTrial) -> Optional[float]:
    """Return the scale from before the lowerings by this kind of bad update.

    None if there were none.
    """
    scale = seen.scale
    if scale.home is None:
        return trial.tried_from or None
    is_home = scale.value >= scale.home
    if is_home or not (trial.has_worked and seen.loss_is_finite):
        return None
    if seen.num_inf_params > 0:
        return scale.home if trial.tries_of_inf > 0 else None
    if trial.steps_of_nan == 0:
        return None
    return min(scale.home, scale.value / scale.backoff**trial.steps_of_nan)


def is_innocent(
    seen: Observation, state: 'GuardState', policy: 'GuardPolicy'
) -> bool:
    """Whether there is evidence that the scale is not the cause."""
    trial, scale = state.scale_trial, seen.scale
    kind = seen.grad_fault
    is_overflow = trial.is_overflow(kind)
    if kind == 'loss' and scale.home is not None:
        # MMEngine never lowers it either.
        return is_overflow is not True
    if is_overflow is not None:
        return not is_overflow and trial.num_bad < TOLERATED_IF_CLEARED
    # A lower scale than 1 lets small gradients underflow.
    is_usual = scale.value > USUAL_FLOOR
    most = TOLERATED if is_usual else TOLERATED_IF_CLEARED
    commits = state.recent_commits
    if trial.num_bad >= most or not any(
        commit.loss_scale >= scale.value for commit in commits
    ):
        return False
    room = room_of(scale.value, seen, state)
    if trial.tried_from > 0 and trial.is_tried(kind):
        lowest = trial.tried_from * scale.backoff**MOST_STEPS_OF_TRIAL
        return scale.value <= max(lowest, scale.floor, USUAL_FLOOR)
    if scale.home is None and is_usual:
        if kind == 'inf' or trial.is_tried(kind):
            return False
        return kind == 'loss' or (
            room >= ROOM_FOR_NAN_OF_DYNAMIC
            and len(commits) == NUM_RECENT_COMMITS
            and state.commits_since_growth >= policy.proven_after
        )
    if kind != 'inf':
        return room >= ROOM_FOR_NAN
    return room >= room_for_inf(seen, trial)


def room_for_inf(seen: Observation, trial: ScaleTrial) -> float:
    """Return the room at which an Inf is no overflow of a static scale."""
    num_tries = trial.tries_of_inf
    is_lowest = seen.scale.value <= seen.scale.floor
    if num_tries >= MANY_TRIES or (num_tries > 0 and is_lowest):
        return ROOM_AFTER_MANY_TRIES
    if num_tries >= FEW_TRIES:
        return ROOM_AFTER_FEW_TRIES
    return ROOM_FOR_INF


def returned_scale(
    seen: Observation, state: 'GuardState', policy: 'GuardPolicy'
) -> Optional[float]:
    """Return the scale to which a commit lets a static scale come back.

    Returns:
        The scale, or None if it stays.
    """
    trial, scale = state.scale_trial, seen.scale
    if scale.home is None or scale.value >= scale.home:
        return None
    if trial.num_bad > trial.num_kept and not trial.has_inf:
        # A streak of NaN alone has lowered the scale, and this commit shows
        # whether gradients are as they were.
        is_likely = (
            trial.has_worked
            and trial.num_trusted == NUM_COMMITS_TO_TRUST
            and trial.nan_is_overflow is not True
        )
        target = scale_before(seen, trial)
        if target is None or not is_likely:
            return None
        if room_of(target, seen, state) < ROOM_FOR_NAN:
            return None
        return target
    num_clean, num_needed = trial.num_clean + 1, policy.proven_after
    room = room_of(scale.home, seen, state)
    if trial.has_worked:
        # Gradients may be as large as those that fitted the home before.
        largest = trial.largest_fit * SLACK_TO_RETURN
        if room < ROOM_TO_RETURN and room * largest < FLOAT16_MAX:
            return None
    elif trial.patience == 1 and room >= ROOM_FOR_NAN:
        # All recent commits were below the home.
        num_clean = max(num_clean, len(state.recent_commits) + 1)
        num_needed = min(num_needed, NUM_COMMITS_TO_TRY)
    is_due = num_clean >= num_needed * trial.patience
    return scale.home if is_due else None


def room_of(scale: float, seen: Observation, state: 'GuardState') -> float:
    """Return the factor by which recent gradients stay below the limit.

    Args:
        scale: The loss scale that the gradients would carry.
        seen: The present update, whose norm counts if it is finite.
        state: The state of the guard, with the recent commits.
    """
    norms = [commit.grad_norm for commit in state.recent_commits]
    norms.append(seen.grad_norm)
    largest = max(filter(math.isfinite, norms), default=math.inf)
    if largest == 0:
        return math.inf
    return FLOAT16_MAX / (largest * scale)
