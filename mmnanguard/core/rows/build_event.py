"""The event of an update, built from what was observed and decided."""

from typing import Any

from ..causes import facts_of_cause
from ..rules.observation import Observation
from ..rules.recent_commits import find_early_end, find_growth
from ..rules.state import GuardState
from ..rules.verdict import Action, Verdict
from .guard_event import PAST_GUARD, GuardEvent

__all__ = ['build_event']


def build_event(
    seen: Observation,
    verdict: Verdict,
    state: GuardState,
    stranger: str = '',
    **facts: Any,
) -> GuardEvent:
    """Return the event of an update that was not a plain step.

    Args:
        seen: The observation that the verdict is about.
        verdict: The decision.
        state: The state after the update.
        stranger: The class of an optimizer that has stepped past the guard
            since the guard's own last step; '' if none has.
        **facts: More fields of the event.
    """
    left_out = seen.left_out
    # The event is about the bad micro-batches if the update was committed
    # without them, or if no other micro-batch is left. If the rest of the
    # window was rejected as well, the event is about the rest.
    if left_out and (verdict.action is Action.STEP or left_out.is_all):
        seen = left_out.seen
        facts['params'] = left_out.params
        facts['micro_batches'] = left_out.to_dict()
    if stranger and facts_of_cause(verdict.cause.value).blames == 'weight':
        facts['origin'] = f'after {stranger}.step() {PAST_GUARD}'
    growth = None
    ends_run = verdict.action in (Action.HALT, Action.ROLLBACK)
    # A single rejection is no explosion, unless it ends the run.
    is_streak = verdict.action is Action.SKIP and state.consecutive_skips > 1
    if ends_run or (is_streak and not verdict.cause.is_routine):
        commits = state.recent_commits
        # A spike that was rejected is no growth before itself.
        numbers = () if verdict.spike else (seen.loss, seen.grad_norm)
        growth = find_growth(commits, *numbers)
        growth = growth or find_early_end(
            commits,
            state.num_steps,
            state.consecutive_skips,
            state.routine_overflows,
        )
    return GuardEvent(
        action=verdict.action,
        cause=verdict.cause,
        # All ranks see a spike or a divergence, and bad_ranks is empty.
        ranks=seen.bad_ranks or (0,),
        loss=seen.loss,
        grad_norm=seen.grad_norm,
        scale_blamed=verdict.blames_scale,
        num_bad_params=seen.num_bad_params,
        num_params=seen.num_params,
        consecutive_skips=state.consecutive_skips,
        total_skips=state.total_skips,
        counts=verdict.counts,
        routine_overflows=state.routine_overflows,
        # As a dict, because rows and messages need no class of this package.
        spike=verdict.spike and verdict.spike._asdict(),
        clip_coef=verdict.clip_coef,
        lr_factor=verdict.lr_factor,
        growth=growth and growth._asdict(),
        **facts,
    )
