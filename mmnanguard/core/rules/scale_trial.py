"""The evidence for and against the loss scale as the cause of bad gradients.

Gradients that are not finite at a finite loss may have overflowed float16
because of the scale, or may come from an operation such as a square root at
0, which no scale cures. MMEngine's dynamic scale is lowered either way, and
its static scale never. Here the scale is lowered when an overflow is shown or
likely, and a static scale comes back to what the user set.
"""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    Mapping,
    NamedTuple,
    Optional,
    Tuple,
)

from .observation import Observation, ScaleReading
from .recent_commits import NUM_RECENT_COMMITS
from .verdict import Action, ScaleMove, Verdict

if TYPE_CHECKING:
    from .policy import GuardPolicy
    from .state import GuardState

__all__ = ['ScaleJudgement', 'ScaleTrial', 'judge_scale', 'returned_scale']

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
# Room that a scale needs to be tried again.
ROOM_TO_RETURN = 2.0
# Number of bad updates in a row that are no reason to lower the scale, at
# first and after it was found not to be the cause.
TOLERATED, TOLERATED_IF_CLEARED = 1, 6
# Number of commits that show that a return at once was right.
NUM_COMMITS_TO_TRUST = 8


@dataclass(frozen=True)
class ScaleTrial:
    """The memory of what lowering the scale has shown.

    A bad update is an update whose gradients are not finite at a finite loss.
    The two kinds of bad updates, those with an Inf in a gradient and those
    with NaN only, are judged apart. The home of a static scale is the value
    that the user set.

    Attributes:
        is_open: Whether the next commit may change this memory.
        has_worked: Whether an update was committed at the home.
        num_bad: Number of bad updates since the last commit.
        num_kept: Number of these that left the scale as it was.
        has_inf: Whether one of these had an Inf.
        num_clean: Number of commits since the last bad update, or since the
            scale came back.
        steps_of_nan: Number of steps by which NaN alone has lowered the scale.
        tries_of_inf: Number of streaks with Inf that have lowered the scale.
        nan_is_overflow: Whether NaN alone was shown to be an overflow, or to
            be none; None if that is not known.
        inf_is_overflow: The same for Inf.
        num_trusted: Number of commits since the scale came back at once.
        fitting: A scale that fitted before the last return to the home; 0 if
            that return has proved right.
        patience: The factor on ``proven_after`` for the next return.
    """

    is_open: bool = True
    has_worked: bool = False
    num_bad: int = 0
    num_kept: int = 0
    has_inf: bool = False
    num_clean: int = 0
    steps_of_nan: int = 0
    tries_of_inf: int = 0
    nan_is_overflow: Optional[bool] = None
    inf_is_overflow: Optional[bool] = None
    num_trusted: int = NUM_COMMITS_TO_TRUST
    fitting: float = 0.0
    patience: int = 1

    def is_overflow(self, has_inf: bool) -> Optional[bool]:
        """Whether bad updates of a kind are overflows; None if not known."""
        return self.inf_is_overflow if has_inf else self.nan_is_overflow

    def with_finding(
        self, has_inf: bool, is_overflow: Optional[bool]
    ) -> 'ScaleTrial':
        """Return the memory with a finding on one kind of bad updates."""
        if has_inf:
            return replace(self, inf_is_overflow=is_overflow)
        return replace(self, nan_is_overflow=is_overflow)

    def after(
        self, seen: Observation, verdict: Verdict, proven_after: int
    ) -> 'ScaleTrial':
        """Return the memory after an update."""
        trial, bad = self, seen
        if verdict.action is Action.STEP and seen.left_out is not None:
            bad = seen.left_out.seen
        if verdict.cause.is_scaled and not bad.grad_is_finite:
            trial = trial._after_bad(bad, verdict)
        if verdict.action is Action.STEP:
            trial = trial._after_commit(seen, verdict, proven_after)
        return trial

    def _after_bad(self, seen: Observation, verdict: Verdict) -> 'ScaleTrial':
        has_inf = seen.num_inf_params > 0
        trial = replace(
            self,
            is_open=True,
            num_bad=self.num_bad + 1,
            has_inf=self.has_inf or has_inf,
            num_clean=0,
        )
        if not verdict.blames_scale:
            trial = replace(trial, num_kept=self.num_kept + 1)
            if verdict.scale_move is ScaleMove.RETURN:
                trial = replace(trial, steps_of_nan=0)
                if has_inf:
                    trial = replace(trial, tries_of_inf=0)
                trial = trial.with_finding(has_inf, False)
            return trial
        if verdict.scale_move is not ScaleMove.LOWER:
            return trial
        if self.fitting > 0:
            # The home was tried again, and overflows still.
            return replace(trial, fitting=0.0, patience=2 * self.patience)
        if self.is_overflow(has_inf) is False:
            # A fault elsewhere makes no such streak.
            trial = trial.with_finding(has_inf, None)
        if not has_inf:
            steps = self.steps_of_nan + self.num_kept + 1
            return replace(trial, num_kept=0, steps_of_nan=steps)
        num_tries = self.tries_of_inf
        if self.num_bad == self.num_kept:
            num_tries += 1
        return replace(trial, num_kept=0, tries_of_inf=num_tries)

    def _after_commit(
        self, seen: Observation, verdict: Verdict, proven_after: int
    ) -> 'ScaleTrial':
        home, move = seen.scale.home, verdict.scale_move
        is_home = home is not None and seen.scale.value >= home
        trial = replace(
            self,
            has_worked=self.has_worked or is_home,
            num_bad=0,
            num_kept=0,
            has_inf=False,
            num_clean=self.num_clean + 1,
            num_trusted=min(self.num_trusted + 1, NUM_COMMITS_TO_TRUST),
        )
        if move is ScaleMove.RETURN:
            trial = replace(trial, num_clean=0, steps_of_nan=0)
            if self.num_bad > 0:
                trial = replace(trial, nan_is_overflow=False, num_trusted=0)
            else:
                trial = replace(
                    trial, tries_of_inf=0, fitting=seen.scale.value
                )
        elif is_home and trial.num_clean >= proven_after * self.patience:
            trial = replace(trial, fitting=0.0, patience=1)
        is_settled = (
            move is ScaleMove.KEEP
            and trial.fitting == 0
            and trial.num_trusted == NUM_COMMITS_TO_TRUST
        )
        return replace(trial, is_open=not is_settled)

    def corrected(
        self, scale: ScaleReading, before: float, is_overflow: bool
    ) -> Tuple['ScaleTrial', float]:
        """Return the memory and the scale after a replay of a bad update.

        Args:
            scale: The present scale, with no commit since that update.
            before: The scale of that update.
            is_overflow: Whether the replay was finite at a lower scale.
        """
        trial = self.with_finding(self.has_inf, is_overflow)
        value = scale.value
        if is_overflow:
            value *= scale.backoff**self.num_kept
            return replace(trial, num_kept=0), max(value, scale.floor)
        if scale.home is None or not self.has_worked:
            value = max(value, before)
        elif self.has_inf and self.tries_of_inf > 0:
            value = scale.home
        else:
            value = min(scale.home, value / scale.backoff**self.steps_of_nan)
        trial = replace(trial, steps_of_nan=0, num_kept=self.num_bad)
        if self.has_inf:
            trial = replace(trial, tries_of_inf=0)
        return trial, value

    def to_dict(self) -> Dict[str, Any]:
        """Return the memory in Python's own types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> 'ScaleTrial':
        """Return the memory that this or another version saved."""
        known = {}
        for item in fields(cls):
            if item.name in saved:
                known[item.name] = saved[item.name]
        return cls(**known)


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
    MMEngine's own would be lowered, too.
    """
    trial, scale = state.scale_trial, seen.scale
    if is_innocent(seen, state, policy):
        target = None
        if trial.num_bad == 0 and trial.has_worked:
            target = scale_before(seen, trial)
        if target is None:
            return ScaleJudgement(False, ScaleMove.KEEP)
        # The fault came back at a scale that has room.
        return ScaleJudgement(False, ScaleMove.RETURN, target)
    if not scale.lower_is_due:
        return ScaleJudgement(True, ScaleMove.KEEP)
    if trial.fitting > 0:
        return ScaleJudgement(True, ScaleMove.LOWER, trial.fitting)
    if trial.num_kept > 0:
        # An overflow after all: catch up with PyTorch's scaler.
        target = scale.value * scale.backoff ** (trial.num_kept + 1)
        return ScaleJudgement(True, ScaleMove.LOWER, max(target, scale.floor))
    return ScaleJudgement(True, ScaleMove.LOWER)


def scale_before(seen: Observation, trial: ScaleTrial) -> Optional[float]:
    """Return the scale from before the lowerings by this kind of bad update.

    None if there were none, or if the scale is dynamic.
    """
    scale = seen.scale
    if scale.home is None or scale.value >= scale.home:
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
    has_inf = seen.num_inf_params > 0
    is_overflow = trial.is_overflow(has_inf)
    if is_overflow is not None:
        return not is_overflow and trial.num_bad < TOLERATED_IF_CLEARED
    commits = state.recent_commits
    if trial.num_bad >= TOLERATED or not any(
        commit.loss_scale >= scale.value for commit in commits
    ):
        return False
    room = room_of(scale.value, seen, state)
    if scale.home is None:
        return (
            not has_inf
            and room >= ROOM_FOR_NAN_OF_DYNAMIC
            and len(commits) == NUM_RECENT_COMMITS
            and state.commits_since_growth >= policy.proven_after
        )
    if not has_inf:
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
    num_needed = max(policy.proven_after * trial.patience, 1)
    room = room_of(scale.home, seen, state)
    needed = ROOM_TO_RETURN if trial.has_worked else ROOM_FOR_NAN
    if trial.num_clean + 1 >= num_needed and room >= needed:
        return scale.home
    return None


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
