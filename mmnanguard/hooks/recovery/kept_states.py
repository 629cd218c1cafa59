"""The states that a run keeps in memory, and the choice among them."""

from typing import List, Optional, Set, Tuple

from mmengine.runner import Runner

from mmnanguard.core import Action, GuardEvent
from mmnanguard.core.rows.alert_row import AlertRow
from mmnanguard.core.rules.recent_commits import NUM_RECENT_COMMITS
from mmnanguard.numerics.guard_protocol import GuardProtocol

from .._shared.hook_arguments import Row
from .earlier_state import EarlierState, count_steps
from .saved_state import newest_clean_state

__all__ = ['BAD_FROM_THE_START', 'CANNOT_RESTORE', 'KeptStates', 'is_at_rest']

NOTHING_OLDER = (
    'No state is kept that is older than the trouble (see '
    'RollbackHook.interval and num_kept), and the work dir has no clean '
    'checkpoint that this run has written before it.'
)
NOTHING_COMMITTED = (
    'No rollback: nothing was committed since {}, so that going back would '
    'change nothing, and neither losses nor gradient norms had exploded.'
)
CANNOT_RESTORE = (
    'No rollback: the state of iteration {} cannot be restored (see the error '
    'above). The run is as it was.'
)
BAD_FROM_THE_START = (
    'No rollback: the weights were bad before the first update, so that each '
    'earlier state has them as well.'
)


class KeptStates:
    """The newest states of a run, and the number of commits since.

    Args:
        runner: The runner of the training.
        num_kept: The number of states to keep.
    """

    def __init__(self, runner: Runner, num_kept: int) -> None:
        self._num_kept = num_kept
        self._kept: List[EarlierState] = []
        self._used: Optional[EarlierState] = None
        self._open_alerts: Set[str] = set()
        # Since the last state was kept.
        self._is_warned = self._has_rejected = False
        self._went_back_at = -1
        self._num_steps = count_steps(runner)
        self._origin = f'training began (iteration {runner.iter + 1})'

    def is_due(self, runner: Runner, interval: int) -> bool:
        """Whether the present state, after this iteration, is to be kept."""
        if not self._kept:
            return True
        is_old = self._kept[-1].iter + interval <= runner.iter + 1
        is_old = is_old or self._is_warned
        # A state that equals the last one would only push out an older one.
        return is_old and not self._is_present(runner, self._kept[-1])

    def add(self, state: EarlierState) -> None:
        """Keep a state, and drop the oldest one if there are too many."""
        self._kept.append(state)
        self._is_warned = self._has_rejected = False
        del self._kept[: -self._num_kept]

    def note_event(self, event: GuardEvent) -> None:
        """Note that an update was rejected, other than by the loss scale."""
        is_step = event.action is Action.STEP
        self._has_rejected |= not (is_step or event.is_routine)

    def note_row(self, row: Row) -> None:
        """Let an alert keep the state that it finds.

        Only the first of several alerts does, and none after a rejected
        update: states of the trouble itself must not push out the older ones.
        """
        if row['kind'] != AlertRow.KIND:
            return
        if row['cleared'] is not None:
            self._open_alerts.discard(row['rule'])
            return
        if not self._open_alerts:
            self._is_warned = self._num_kept > 1 and not self._has_rejected
        self._open_alerts.add(row['rule'])

    def peek(self, first_bad: int) -> Optional[EarlierState]:
        """Return the newest state in memory from before the trouble.

        Args:
            first_bad: The iteration at which the trouble began.
        """
        older = [kept for kept in self._kept if kept.iter < first_bad]
        return older[-1] if older else None

    def choose(
        self, runner: Runner, first_bad: int, is_bad: bool, is_suspect: bool
    ) -> Tuple[Optional[EarlierState], str]:
        """Return the newest state from before the trouble; collective.

        The state of the last rollback is passed over if there is an older
        one, because the trouble came back after it. A clean checkpoint of
        this run is read if it is newer than all states in memory that are
        old enough.

        Args:
            runner: The runner of the training.
            first_bad: The iteration at which the trouble began.
            is_bad: Whether the present state is not what commits have made.
                Otherwise a state that equals the present one is passed over.
            is_suspect: Whether the commits have led into the trouble. If
                neither flag is set, the updates alone are bad; then something
                must have been committed since the start or last rollback.

        Returns:
            The state, or None and the reason why there is none.
        """
        num_steps = count_steps(runner)
        # All updates met one state, and the rejected ones left no trace: an
        # even earlier state would meet the same trouble.
        if num_steps == self._num_steps and not (is_bad or is_suspect):
            return None, NOTHING_COMMITTED.format(self._origin)
        older = [kept for kept in self._kept if kept.iter < first_bad]
        # Bad weights differ from the kept ones, unless these were restored a
        # moment ago and did not help.
        newest = older[-1] if older else None
        can_be_present = not is_bad or newest is self._used
        if newest and can_be_present and self._is_present(runner, newest):
            first_bad = older.pop().iter
        if len(older) > 1 and older[-1] is self._used:
            older.pop()
        # States of the trouble itself must not be restored later.
        self._kept = older
        if not older:
            return newest_clean_state(runner, first_bad), NOTHING_OLDER
        if is_suspect:
            # The last commits may have led into it already.
            first_bad -= NUM_RECENT_COMMITS
        # Files from before the last rollback have not helped.
        after = max(older[-1].iter, self._went_back_at)
        saved = newest_clean_state(runner, first_bad, after)
        if saved and not is_bad and self._is_present(runner, saved):
            saved = newest_clean_state(runner, saved.iter, after)
        return saved or older[-1], ''

    def note_restored(self, runner: Runner, state: EarlierState) -> None:
        """Note that a state was restored."""
        self._used = state
        self._went_back_at = int(runner.iter) + 1
        self._num_steps = count_steps(runner)
        self._origin = f'training went back to iteration {state.iter}'

    def note_going_on(self, runner: Runner) -> None:
        """Note that training went on where it was."""
        self._num_steps = count_steps(runner)
        self._origin = f'training went on (iteration {runner.iter + 1})'

    def has_commits(self, runner: Runner) -> bool:
        """Whether anything was committed since training last went on."""
        return count_steps(runner) != self._num_steps

    def _is_present(self, runner: Runner, state: EarlierState) -> bool:
        """Whether nothing was committed since a state."""
        num_steps = count_steps(runner)
        if state is self._used:
            return num_steps == self._num_steps
        return num_steps == state.num_steps


def is_at_rest(guard: GuardProtocol) -> bool:
    """Whether no window is open and the last update was not skipped."""
    state = guard.state
    commits = state.recent_commits
    # A skip that counts toward no limit is no part of a streak.
    is_last = not commits or commits[-1].update == state.num_updates
    return state.consecutive_skips == 0 and is_last and not guard.is_open
