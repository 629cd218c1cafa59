from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Dict, List, Mapping, Optional, Tuple

from .divergence import LossLevel
from .observation import Observation
from .spike import Spike
from .verdict import Action, ScaleMove, Verdict

__all__ = ['GuardState']


@dataclass(frozen=True)
class GuardState:
    """What the rules remember, equal on all ranks.

    Attributes:
        num_updates: Updates judged, whatever became of them.
        num_steps: Updates committed.
        total_skips: Updates rejected, routine overflows left out.
        consecutive_skips: The same since the last commit.
        routine_overflows: Updates rejected at a loss scale not yet proven.
        commits_since_growth: Commits since the loss scale started or grew.
            The scale only went down since then, so all of them were made at
            the present scale or above.
        recent_skips: Was it a skip, or a commit that left micro-batches out;
            oldest first, routine overflows not among them.
        skip_rate_window: The most that ``recent_skips`` keeps.
        recent_norms: Of committed updates, oldest first; of a clipped spike,
            its limit.
        recent_losses: The same.
        spike_window: The most that these two keep.
        loss_level: See :class:`LossLevel`.
        lr_factor: Of the last committed update, in (0, 1].
        lr_return: By how much it grows with the next.
        num_rollbacks: Returns to an earlier state.
        num_left_out: Micro-batches that did not join a committed update.
    """

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
    num_rollbacks: int = 0
    num_left_out: int = 0

    def after(self, seen: Observation, verdict: Verdict) -> 'GuardState':
        """The next state; ``seen`` is what ``verdict`` was reached on."""
        num_updates = self.num_updates + 1
        if verdict.action is Action.STEP:
            grew = verdict.scale_move is ScaleMove.GROW
            spike = verdict.spike
            return replace(
                self,
                num_updates=num_updates,
                num_steps=self.num_steps + 1,
                consecutive_skips=0,
                # An update that had to leave out an overflow proves no scale.
                commits_since_growth=(
                    0
                    if grew
                    else self.commits_since_growth
                    + (not verdict.cause.is_scaled)
                ),
                num_left_out=self.num_left_out
                + (len(seen.left_out.places) if seen.left_out else 0),
                recent_skips=self.recent_skips
                if verdict.cause.is_routine
                else self.with_skip(seen.left_out is not None),
                recent_norms=self._with(
                    'grad_norm', self.recent_norms, seen.grad_norm, spike
                ),
                recent_losses=self._with(
                    'loss', self.recent_losses, seen.loss, spike
                ),
                loss_level=self.loss_level.after(seen.loss),
                lr_factor=verdict.lr_factor,
                lr_return=verdict.lr_return,
            )
        if verdict.cause.is_routine:
            return replace(
                self,
                num_updates=num_updates,
                routine_overflows=self.routine_overflows + 1,
            )
        return replace(
            self,
            num_updates=num_updates,
            total_skips=self.total_skips + 1,
            consecutive_skips=self.consecutive_skips + 1,
            recent_skips=self.with_skip(True),
        )

    def rolled_back(
        self, to: 'GuardState', lr_factor: float, lr_return: float
    ) -> 'GuardState':
        """Counters go on, and limits are counted anew; what is known of
        norms and losses is that of ``to``.
        """
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
        )

    def with_skip(self, skipped: bool) -> Tuple[bool, ...]:
        return (*self.recent_skips, skipped)[-self.skip_rate_window :]

    def _with(
        self,
        what: str,
        past: Tuple[float, ...],
        value: float,
        spike: Optional[Spike],
    ) -> Tuple[float, ...]:
        if self.spike_window == 0:
            return ()
        if spike and spike.what == what and not spike.limit_is_fixed:
            value = min(value, spike.limit)
        return (*past, value)[-self.spike_window :]

    def to_dict(self) -> Dict[str, Any]:
        """Builtins only, so that a checkpoint loads with weights_only."""
        return asdict(self, dict_factory=with_lists)

    @classmethod
    def from_dict(
        cls,
        saved: Mapping[str, Any],
        skip_rate_window: int,
        spike_window: int = 0,
        loss_window: int = 0,
    ) -> 'GuardState':
        """Read ``to_dict``; missing keys keep defaults, others are ignored.

        Args:
            saved: From this or another version.
            skip_rate_window: Of the present config, which sets the policy.
            spike_window: The same.
            loss_window: The same.
        """
        names = {each.name for each in fields(cls)}
        known = {key: value for key, value in saved.items() if key in names}
        known['recent_skips'] = tuple(
            map(bool, known.get('recent_skips', ()))
        )[-skip_rate_window:]
        known['skip_rate_window'] = skip_rate_window
        for name in ('recent_norms', 'recent_losses'):
            past = tuple(map(float, known.get(name, ())))
            known[name] = past[-spike_window:] if spike_window else ()
        known['spike_window'] = spike_window
        known['loss_level'] = LossLevel.from_dict(
            known.get('loss_level', {}), loss_window
        )
        return cls(**known)


def with_lists(items: List[Tuple[str, Any]]) -> Dict[str, Any]:
    """As JSON gives them back."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in items
    }
