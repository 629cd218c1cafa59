"""The result of an audit, which other hooks receive."""

from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple

from mmnanguard.core import Action, BadTensor, Cause, GuardEvent
from mmnanguard.core.rows.audit_row import AuditRow

__all__ = ['Audit']


@dataclass
class Audit:
    """Non-finite state that an audit found.

    Every hook that has a method ``after_audit(runner, audit)`` receives it,
    on all ranks.

    Attributes:
        iter: Counts from 1.
        epoch: Counts from 1.
        names: (where, name) of all that is bad, on whatever rank. Where is
            'weights', 'buffers', 'optimizer' or 'ema'.
        tensors: A few at each place; their ``tensor`` says where.
        ranks: Where something was found.
        checkpoint: Name of the one that was not written for it; None if none
            was due.
        id: Unique in the run.
        run: Names the run.
        attempt: Of the run.
        is_handled: Set by a hook that has mended the run's state: training
            goes on, whatever the action is.
    """

    iter: int
    epoch: int
    names: Tuple[Tuple[str, str], ...]
    tensors: Tuple[BadTensor, ...]
    ranks: Tuple[int, ...] = (0,)
    checkpoint: Optional[str] = None
    id: str = ''
    run: str = ''
    attempt: int = 1
    is_handled: bool = False

    @property
    def where(self) -> Tuple[str, ...]:
        return tuple(dict.fromkeys(where for where, _ in self.names))

    @property
    def record(self) -> AuditRow:
        """The audit as a row of the event log."""
        return AuditRow(
            id=self.id,
            run=self.run,
            attempt=self.attempt,
            iter=self.iter,
            epoch=self.epoch,
            ranks=self.ranks,
            where=self.where,
            num_bad=len(self.names),
            tensors=self.tensors,
            checkpoint=self.checkpoint,
        )

    def to_row(self) -> Dict[str, Any]:
        return self.record.to_row()

    def to_event(self) -> GuardEvent:
        """Return the event of a halt because of this audit."""
        return GuardEvent(
            action=Action.HALT,
            cause=Cause.WEIGHT_NONFINITE,
            iter=self.iter,
            epoch=self.epoch,
            ranks=self.ranks,
            num_bad_params=len(self.names),
            params=self.tensors,
            run=self.run,
            attempt=self.attempt,
            id=self.id,
        )

    def line(self) -> str:
        """Return the console line."""
        return self.record.line()

    def halt_story(self, last_clean: Optional[str], is_guarded: bool) -> str:
        """Return the text for the person who reads it next morning.

        Args:
            last_clean: The checkpoint to go on from; None if there is none.
            is_guarded: No update can have done it.
        """
        cause = (
            'It happened outside any guarded update. Look for code that '
            'changes weights, buffers or averages by itself (hooks, EMA '
            'swaps, .data).'
            if is_guarded
            else 'Updates are not guarded: set optim_wrapper.type to '
            'mmnanguard.NanGuardOptimWrapper or NanGuardAmpOptimWrapper.'
        )
        advice = (
            f'Go on from the last clean checkpoint: --resume {last_clean}.'
            if last_clean
            else 'No checkpoint of this run is known to be clean.'
        )
        return '\n  '.join(
            [
                f'training halted at iteration {self.iter}: the state of the '
                'run is bad.',
                self.line(),
                cause,
                advice,
                "To go on all the same: StateAuditHook(action='warn'), which "
                'writes no checkpoint either while the state is bad.',
            ]
        )
