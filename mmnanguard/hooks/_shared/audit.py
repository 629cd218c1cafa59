"""The result of an audit, which other hooks receive."""

from dataclasses import dataclass
from typing import Optional, Tuple

from mmnanguard._support.escape import escape, shell_word
from mmnanguard.core import Action, BadTensor, Cause, GuardEvent
from mmnanguard.core.rows.audit_row import AuditRow

from .hook_arguments import Row

__all__ = ['Audit']


@dataclass
class Audit:
    """Non-finite state that an audit found.

    Every hook that has a method ``after_audit(runner, audit)`` receives it,
    on all ranks.

    Attributes:
        iter: Iteration of the audit, from 1.
        epoch: Epoch of the audit, from 1.
        names: Place and name of every bad tensor, on whatever rank. The
            place is 'weights', 'buffers', 'optimizer' or 'ema'.
        tensors: A few bad tensors of each place. The attribute ``tensor`` of
            each is its place.
        ranks: Ranks that hold a bad tensor.
        checkpoint: Name of the checkpoint that was not written because of
            the bad state; None if none was due.
        id: Id of the audit, unique in the run.
        run: Id of the run.
        attempt: Number of the process start in the run, from 1.
        is_handled: Whether a hook has repaired the state. The hook sets it,
            and training goes on, whatever the action of ``StateAuditHook``.
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
        """The places with bad tensors, in the order of the audit."""
        # A dict and not a set: the order must not differ between processes.
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

    def to_row(self) -> Row:
        """Return the row for ``events.jsonl``."""
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

    def halt_story(
        self, last_clean: Optional[str], unguarded: str = '', origin: str = ''
    ) -> str:
        """Return the error text for the person who reads it next morning.

        Args:
            last_clean: Path of the last clean checkpoint; None if there is
                none.
            unguarded: Which updates are not guarded, and how to guard them;
                '' if all are, so that no update can be the cause.
            origin: How the tensors became bad, as a clause, if it is known.
        """
        # The guard commits no update that makes a weight non-finite.
        cause = (
            'It happened outside any guarded update. Look for code that '
            'changes weights, buffers or averages by itself (hooks, EMA '
            'swaps, .data).'
        )
        if unguarded:
            cause = unguarded
        if origin:
            cause = f'It is {origin}.'
        advice = 'No checkpoint of this run is known to be clean.'
        if last_clean:
            advice = (
                'Go on from the last clean checkpoint: --resume '
                f'{shell_word(last_clean)}'
            )
        lines = [
            f'training halted at iteration {self.iter}: the state of the '
            'run is bad.',
            f'Iter {self.iter}: audit: {self.record.sentence()}',
            cause,
            advice,
            "To go on all the same: StateAuditHook(action='warn'), which "
            'writes no checkpoint either while the state is bad.',
        ]
        return '\n  '.join(map(escape, lines))
