"""The memory of a guard from update to update."""

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ..causes import Cause
from .divergence import LossLevel
from .observation import Observation, ScaleReading
from .recent_commits import (
    NUM_RECENT_COMMITS,
    Commit,
    commits_from_dict,
    commits_to_dict,
)
from .scale_trial import ScaleTrial
from .spike import Spike
from .verdict import Action, ScaleMove, Verdict

__all__ = ['GuardState']

# While more than one update in so many has a loss that is not finite, and
# finite gradients, such updates are committed.
COMMITS_TO_FORGET = 10
MOST_REMEMBERED = 12  # twice MOST_HARMLESS
NUM_FIRST = 4  # losses of a run's first commits


@dataclass(frozen=True)
class GuardState:
    """The counters and statistics of a guard, equal on all ranks.

    Attributes:
        num_updates: Number of judged updates.
        num_steps: Number of committed updates.
        total_skips: Number of rejected updates without routine overflows.
        consecutive_skips: Number of rejected updates since the last commit,
            without routine overflows and without updates that did no harm
            (``Verdict.counts``).
        routine_overflows: Number of updates rejected at a loss scale that
            was not yet proven.
        commits_since_growth: Number of commits since the loss scale started
            or grew. The scale has only been lowered since then, so all these
            commits were made at the present scale or above it.
        recent_skips: For each of the last updates, whether it was a skip or
            left micro-batches out; oldest first, without routine overflows
            and without rejected updates that did no harm.
        skip_rate_window: The greatest length of ``recent_skips``.
        recent_norms: Gradient norms of committed updates, oldest first. A
            clipped spike counts with its limit.
        recent_losses: Losses of committed updates, oldest first. A clipped
            spike counts with its limit.
        spike_window: The greatest length of ``recent_norms`` and
            ``recent_losses``.
        loss_level: The level of losses for the divergence rule.
        lr_factor: Factor on the learning rates of the last committed update,
            in (0, 1].
        lr_return: The amount by which ``lr_factor`` grows with the next
            commit.
        lr_ceiling: The highest ``lr_factor``, which stays.
        num_rollbacks: Number of returns to an earlier state.
        num_left_out: Number of micro-batches that were left out of committed
            updates.
        recent_commits: The last 64 committed updates, oldest first, as they
            were observed.
        scale_trial: What lowering the loss scale has shown.
        harmless_skips: Number of updates that did no harm although their
            loss or input was not finite, and of those with a bad loss that
            lowered the scale, less one for each ten commits.
        first_losses: The finite losses among the run's first four commits.
    """

    # Names and types are in checkpoints (test_written_by_0_1.py).
    num_updates: int = 0
    num_steps: int = 0
    total_skips: int = 0
    consecutive_skips: int = 0
    routine_overflows: int = 0
    commits_since_growth: int = 0
    recent_skips: Tuple[bool, ...] = ()
    skip_rate_window: int = 200
    recent_norms: Tuple[float, ...] = ()
    recent_losses: Tuple[float, ...] = ()
    spike_window: int = 0
    loss_level: LossLevel = field(default_factory=LossLevel)
    lr_factor: float = 1.0
    lr_return: float = 0.0
    lr_ceiling: float = 1.0
    num_rollbacks: int = 0
    num_left_out: int = 0
    recent_commits: Tuple[Commit, ...] = ()
    scale_trial: ScaleTrial = field(default_factory=ScaleTrial)
    harmless_skips: int = 0
    first_losses: Tuple[float, ...] = ()

    def after(
        self,
        seen: Observation,
        verdict: Verdict,
        lr: float = math.nan,
        proven_after: int = 100,
    ) -> 'GuardState':
        """Return the state after an update.

        Args:
            seen: The observation that the verdict is about.
            verdict: The decision.
            lr: The highest learning rate of the optimizer, before
                ``verdict.lr_factor``; NaN if it is not known.
            proven_after: See :class:`GuardPolicy`.
        """
        state = replace(self, num_updates=self.num_updates + 1)
        trial, scale = self.scale_trial, seen.scale
        is_lowered = scale.home is not None and scale.value < scale.home
        # Nearly all updates are commits at the user's scale.
        is_bad = (
            verdict.cause is not Cause.NONE
            and verdict.cause.is_scaled
            and scale != ScaleReading()
        )
        if trial.is_open or is_lowered or is_bad:
            trial = trial.after(
                seen, verdict, proven_after, self.recent_commits
            )
            state = replace(state, scale_trial=trial)
        if verdict.action is Action.STEP:
            return state._committed(seen, verdict, lr)
        # A routine overflow counts toward no limit and interrupts no streak.
        if verdict.cause.is_routine:
            num_overflows = self.routine_overflows + 1
            return replace(state, routine_overflows=num_overflows)
        state = replace(state, total_skips=self.total_skips + 1)
        if not verdict.counts:
            return replace(state, harmless_skips=self.harmless_skips + 1)
        harmless_skips = self.harmless_skips
        if verdict.scale_move is ScaleMove.LOWER and not seen.loss_is_finite:
            harmless_skips = min(harmless_skips + 1, MOST_REMEMBERED)
        return replace(
            state,
            consecutive_skips=self.consecutive_skips + 1,
            recent_skips=self.with_skip(True),
            harmless_skips=harmless_skips,
        )

    def _committed(
        self, seen: Observation, verdict: Verdict, lr: float
    ) -> 'GuardState':
        """Return the state after a commit, see :meth:`after`."""
        spike, left_out = verdict.spike, seen.left_out
        num_commits = self.commits_since_growth
        # Nothing is known about the new, larger scale. A lower scale keeps the
        # count: what fitted the larger scale fits it, too.
        if verdict.scale_move in (ScaleMove.GROW, ScaleMove.RETURN):
            num_commits = 0
        elif left_out is None or not (
            verdict.counts and verdict.cause.is_scaled
        ):
            # An update that had to leave out an overflow proves no scale.
            num_commits += 1
        loss_level, recent_losses = self.loss_level, self.recent_losses
        # Updates may be committed in spite of their loss.
        if seen.loss_is_finite:
            recent_losses = self._with('loss', recent_losses, seen.loss, spike)
        if loss_level.window > 0 and seen.loss_is_finite:
            loss_level = loss_level.after(seen.loss)
        first_losses = self.first_losses
        if self.num_steps < NUM_FIRST and math.isfinite(seen.loss):
            first_losses += (seen.loss,)
        recent_skips = self.recent_skips
        if left_out is None or not verdict.cause.is_routine:
            is_skip = left_out is not None and verdict.counts
            recent_skips = self.with_skip(is_skip)
        num_left_out = self.num_left_out
        if left_out is not None:
            num_left_out += len(left_out.places)
        # A state has to equal its copy, so every NaN is the object math.nan.
        commit = Commit(
            self.num_updates,
            seen.loss if math.isfinite(seen.loss) else math.nan,
            seen.grad_norm,
            lr * verdict.lr_factor if math.isfinite(lr) else math.nan,
            seen.scale.value,
            verdict.clip_coef,
        )
        commits = (*self.recent_commits, commit)[-NUM_RECENT_COMMITS:]
        return replace(
            self,
            num_steps=self.num_steps + 1,
            consecutive_skips=0,
            commits_since_growth=num_commits,
            num_left_out=num_left_out,
            recent_skips=recent_skips,
            recent_norms=self._with(
                'grad_norm', self.recent_norms, seen.grad_norm, spike
            ),
            recent_losses=recent_losses,
            loss_level=loss_level,
            lr_factor=verdict.lr_factor,
            lr_return=verdict.lr_return,
            recent_commits=commits,
            harmless_skips=self._harmless_skips_after(seen.loss_is_finite),
            first_losses=first_losses,
        )

    def _harmless_skips_after(self, loss_is_finite: bool) -> int:
        """Return ``harmless_skips`` after a commit."""
        if not loss_is_finite:
            return min(self.harmless_skips + 1, MOST_REMEMBERED)
        is_tenth = self.num_steps % COMMITS_TO_FORGET == 0
        return max(self.harmless_skips - is_tenth, 0)

    def rolled_back(
        self, to: 'GuardState', lr_factor: float, lr_return: float
    ) -> 'GuardState':
        """Return the state after a rollback.

        Counters continue, and limits are counted anew.

        Args:
            to: The earlier state, from which the statistics of norms and
                losses and the recent commits come.
            lr_factor: The factor on learning rates from now on.
            lr_return: The growth of that factor with the next commit.
        """
        # Skips from before would end the run again at once, and the present
        # scale is not proven for the weights of ``to``.
        return replace(
            self,
            consecutive_skips=0,
            recent_skips=(),
            recent_norms=to.recent_norms,
            recent_losses=to.recent_losses,
            loss_level=to.loss_level,
            commits_since_growth=0,
            lr_factor=lr_factor,
            lr_return=lr_return,
            num_rollbacks=self.num_rollbacks + 1,
            recent_commits=to.recent_commits,
            scale_trial=ScaleTrial(),
            harmless_skips=0,
        )

    def without_skips(self) -> 'GuardState':
        """Return the state with all limits counted anew, as a rollback."""
        return replace(
            self,
            consecutive_skips=0,
            recent_skips=(),
            num_rollbacks=self.num_rollbacks + 1,
        )

    def with_lower_rates(self, factor: float) -> 'GuardState':
        """Return the state with lower rates, which no recovery raises."""
        return replace(
            self,
            lr_factor=self.lr_factor * factor,
            lr_ceiling=self.lr_ceiling * factor,
        )

    def recovered_lr(self) -> Tuple[float, float]:
        """Return the next ``lr_factor`` and ``lr_return`` without back-off."""
        factor = self.lr_factor + self.lr_return
        if factor < self.lr_ceiling:
            return factor, self.lr_return
        return self.lr_ceiling, 0.0

    def with_skip(self, skipped: bool) -> Tuple[bool, ...]:
        """Return ``recent_skips`` with one more update.

        Args:
            skipped: Whether that update counts as a skip.
        """
        return (*self.recent_skips, skipped)[-self.skip_rate_window :]

    def _with(
        self,
        what: str,
        past: Tuple[float, ...],
        value: float,
        spike: Optional[Spike],
    ) -> Tuple[float, ...]:
        """Return a series with one more value.

        Args:
            what: The name of the series in ``Spike.what``.
            past: The series, oldest first.
            value: The new value.
            spike: The spike of this update, if any.
        """
        # [-0:] would keep everything.
        if self.spike_window == 0:
            return ()
        # A clipped spike enters with its limit: the statistics follow a new
        # level in time, and one outlier does not spoil them. The limit of
        # lr_backoff is fixed and says nothing about the series.
        if spike and spike.what == what and not spike.limit_is_fixed:
            value = min(value, spike.limit)
        return (*past, value)[-self.spike_window :]

    def to_dict(self) -> Dict[str, Any]:
        """Return the state in Python's own types."""
        # torch.load with weights_only=True reads no others.
        saved = asdict(
            replace(self, recent_commits=()), dict_factory=with_lists
        )
        saved['recent_commits'] = commits_to_dict(self.recent_commits)
        return saved

    @classmethod
    def from_dict(
        cls,
        saved: Mapping[str, Any],
        skip_rate_window: int,
        spike_window: int = 0,
        loss_window: int = 0,
    ) -> 'GuardState':
        """Return the state that ``to_dict`` saved in this or another version.

        Missing keys get their defaults, and unknown keys are ignored. The
        lengths are those of the present config, which has precedence over the
        saved lengths.

        Args:
            saved: The saved state.
            skip_rate_window: The greatest length of ``recent_skips``.
            spike_window: The greatest length of ``recent_norms`` and
                ``recent_losses``.
            loss_window: The length of the windows of ``loss_level``.
        """
        known: Dict[str, Any] = {}
        for item in fields(cls):
            if item.name in saved:
                known[item.name] = saved[item.name]
        skips = tuple(map(bool, known.get('recent_skips', ())))
        known['recent_skips'] = skips[-skip_rate_window:]
        known['skip_rate_window'] = skip_rate_window
        for name in ('recent_norms', 'recent_losses'):
            past: Tuple[float, ...] = ()
            # [-0:] would keep everything.
            if spike_window > 0:
                past = tuple(map(float, known.get(name, ())))[-spike_window:]
            known[name] = past
        known['spike_window'] = spike_window
        known['first_losses'] = tuple(
            map(float, known.get('first_losses', ()))
        )
        known['loss_level'] = LossLevel.from_dict(
            known.get('loss_level', {}), loss_window
        )
        known['recent_commits'] = commits_from_dict(
            known.get('recent_commits', {})
        )
        known['scale_trial'] = ScaleTrial.from_dict(
            known.get('scale_trial', {})
        )
        return cls(**known)


def with_lists(items: List[Tuple[str, Any]]) -> Dict[str, Any]:
    """Return a dict of items, with lists in place of tuples.

    The result equals what JSON reads back.
    """
    result = dict(items)
    for key, value in items:
        if isinstance(value, tuple):
            result[key] = list(value)
    return result
