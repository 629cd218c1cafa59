"""The memory of what lowering the loss scale has shown."""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

from .observation import Observation, ScaleReading
from .recent_commits import Commit
from .verdict import Action, ScaleMove, Verdict

__all__ = ['NUM_COMMITS_TO_TRUST', 'ScaleTrial']

# Number of commits that show that a return at once was right.
NUM_COMMITS_TO_TRUST = 8
# Number of bad updates, of each kind, that leave a dynamic scale as it is
# before it is lowered on trial. A bad loss has mostly spoiled its gradients.
SPARED = {'nan': 1, 'loss': 4}


@dataclass(frozen=True)
class ScaleTrial:
    """The memory of what lowering the scale has shown.

    A bad update is an update whose gradients are not finite. The kinds of
    bad updates (``Observation.grad_fault``) are judged apart. The home of a
    static scale is the value that the user set.

    Attributes:
        is_open: Whether the next commit may change this memory.
        has_worked: Whether an update was committed at the home.
        largest_fit: The largest norm of scaled gradients that was committed
            at the home before the last bad update there.
        num_bad: Number of bad updates since the last commit.
        num_kept: Number of these that left the scale as it was.
        has_inf: Whether one of these was of another kind than NaN alone.
        num_clean: Number of commits since the last bad update that was
            blamed on the scale, or since the scale came back.
        steps_of_nan: Number of steps by which NaN alone has lowered the scale.
        tries_of_inf: Number of streaks with Inf that have lowered the scale.
        nan_is_overflow: Whether NaN alone was shown to be an overflow, or to
            be none; None if that is not known.
        inf_is_overflow: The same for Inf.
        loss_is_overflow: The same for gradients beside a bad loss.
        num_trusted: Number of commits since the scale came back at once.
        fitting: A scale that fitted before the last return to the home; 0 if
            that return has proved right.
        patience: The factor on ``proven_after`` for the next return.
        suspect: The kind of the last bad update that left a dynamic scale as
            it was; '' if there was none.
        num_spared: Number of such updates of this kind.
        tried_from: The dynamic scale before it was lowered on trial; 0 if
            there is no trial.
    """

    is_open: bool = True
    has_worked: bool = False
    largest_fit: float = 0.0
    num_bad: int = 0
    num_kept: int = 0
    has_inf: bool = False
    num_clean: int = 0
    steps_of_nan: int = 0
    tries_of_inf: int = 0
    nan_is_overflow: Optional[bool] = None
    inf_is_overflow: Optional[bool] = None
    loss_is_overflow: Optional[bool] = None
    num_trusted: int = NUM_COMMITS_TO_TRUST
    fitting: float = 0.0
    patience: int = 1
    suspect: str = ''
    num_spared: int = 0
    tried_from: float = 0.0

    def is_overflow(self, kind: str) -> Optional[bool]:
        """Whether bad updates of a kind are overflows; None if not known."""
        findings = {
            'loss': self.loss_is_overflow,
            'inf': self.inf_is_overflow,
            'nan': self.nan_is_overflow,
        }
        return findings[kind]

    def is_tried(self, kind: str) -> bool:
        """Whether a bad update of a kind lowers a dynamic scale on trial."""
        return kind == self.suspect and self.num_spared >= SPARED[kind]

    def with_finding(
        self, kind: str, is_overflow: Optional[bool]
    ) -> 'ScaleTrial':
        """Return the memory with a finding on one kind of bad updates."""
        if kind == 'loss':
            return replace(self, loss_is_overflow=is_overflow)
        if kind == 'inf':
            return replace(self, inf_is_overflow=is_overflow)
        return replace(self, nan_is_overflow=is_overflow)

    def after(
        self,
        seen: Observation,
        verdict: Verdict,
        proven_after: int,
        commits: Sequence[Commit] = (),
    ) -> 'ScaleTrial':
        """Return the memory after an update.

        Args:
            seen: The observation that the verdict is about.
            verdict: The decision.
            proven_after: See :class:`GuardPolicy`.
            commits: The recent commits before the update.
        """
        trial, bad = self, seen
        if verdict.action is Action.STEP and seen.left_out is not None:
            bad = seen.left_out.seen
        if verdict.cause.is_scaled and not bad.grad_is_finite:
            trial = trial._with_fit(seen.scale, commits)
            trial = trial._after_bad(bad, verdict)
        if verdict.action is Action.STEP:
            trial = trial._after_commit(seen, verdict, proven_after)
        return trial

    def _with_fit(
        self, scale: ScaleReading, commits: Sequence[Commit]
    ) -> 'ScaleTrial':
        home = scale.home
        if home is None or scale.value < home:
            return self
        largest = self.largest_fit
        for commit in commits:
            if commit.loss_scale >= home:
                largest = max(largest, commit.grad_norm * commit.loss_scale)
        return replace(self, largest_fit=largest)

    def _after_bad(self, seen: Observation, verdict: Verdict) -> 'ScaleTrial':
        kind, is_dynamic = seen.grad_fault, seen.scale.home is None
        has_inf = kind != 'nan'
        if kind == 'loss' and not (is_dynamic or verdict.blames_scale):
            return self
        trial = replace(
            self,
            is_open=True,
            num_bad=self.num_bad + 1,
            has_inf=self.has_inf or has_inf,
        )
        if not verdict.blames_scale:
            trial = replace(trial, num_kept=self.num_kept + 1)
            if verdict.scale_move is ScaleMove.RETURN:
                trial = replace(
                    trial, steps_of_nan=0, suspect='', tried_from=0.0
                )
                if has_inf:
                    trial = replace(trial, tries_of_inf=0)
                return trial.with_finding(kind, False)
            is_new = is_dynamic and self.is_overflow(kind) is None
            if is_new and self.tried_from == 0:
                num_spared = 1
                if kind == self.suspect:
                    num_spared += self.num_spared
                trial = replace(trial, suspect=kind, num_spared=num_spared)
            return trial
        trial = replace(trial, num_clean=0)
        if verdict.scale_move is not ScaleMove.LOWER:
            return trial
        if self.fitting > 0:
            # The home was tried again, and overflows still.
            trial = replace(trial, fitting=0.0, patience=2 * self.patience)
        if self.is_overflow(kind) is False:
            # A fault elsewhere makes no such streak.
            trial = trial.with_finding(kind, None)
        elif self.is_tried(kind) and self.tried_from == 0:
            trial = replace(trial, tried_from=seen.scale.value)
        if not has_inf:
            steps = self.steps_of_nan + steps_to(verdict.scale_to, seen.scale)
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
        trial = self
        if move is ScaleMove.GROW:
            trial = replace(trial, suspect='', tried_from=0.0)
        trial = replace(
            trial,
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
            and not trial.suspect
        )
        return replace(trial, is_open=not is_settled)

    def corrected(
        self, kind: str, scale: ScaleReading, before: float, is_overflow: bool
    ) -> Tuple['ScaleTrial', float]:
        """Return the memory and the scale after a replay of a bad update.

        Args:
            kind: The kind of that update, see ``is_overflow``.
            scale: The present scale, with no commit since that update.
            before: The scale of that update.
            is_overflow: Whether the gradients of the replay were finite at a
                lower scale.
        """
        trial = self.with_finding(kind, is_overflow)
        trial, value = replace(trial, suspect='', tried_from=0.0), scale.value
        if is_overflow:
            value *= scale.backoff**self.num_kept
            return replace(trial, num_kept=0), max(value, scale.floor)
        if kind == 'loss' and scale.home is not None:
            return trial, value
        if scale.home is None or not self.has_worked:
            value = max(value, before, self.tried_from)
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


def steps_to(target: Optional[float], scale: ScaleReading) -> int:
    """Return the number of steps by which a scale is lowered."""
    if target is None:
        return 1
    return round(math.log(target / scale.value, scale.backoff))
