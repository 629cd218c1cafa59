"""The watch over losses that have risen, up to a rollback or none."""

import logging
from dataclasses import replace
from typing import Optional

from mmengine.runner import Runner

from mmnanguard._console import say
from mmnanguard.core import Spike
from mmnanguard.numerics.guard_protocol import GuardProtocol

from .._shared.find_guards import find_guards, find_wrappers, window_length
from .._shared.hook_arguments import DataBatch
from .divergence_trial import DivergenceTrial
from .kept_states import KeptStates

__all__ = ['RisingLosses']


class RisingLosses:
    """Lets a divergence roll back only after a trial of earlier weights.

    Args:
        states: The states that the run keeps.

    Attributes:
        trial: The trial of the present rise, if there is one.
    """

    def __init__(self, states: KeptStates) -> None:
        self._states = states
        self.trial: Optional[DivergenceTrial] = None

    def look(self, runner: Runner) -> None:
        """Begin a trial if the losses of an optimizer have risen."""
        for name, guard in find_guards(runner).items():
            if guard.policy.when_exhausted != 'rollback':
                continue
            if find_rise(guard) is None:
                set_trial(guard, True)
            elif guard.state.loss_level.needs_trial and self.trial is None:
                first_bad = self.first_bad(runner, name)
                earlier = self._states.peek(first_bad)
                if earlier is None:
                    self._accept(runner, guard, 'no earlier state is kept')
                else:
                    self.trial = DivergenceTrial(name, first_bad, earlier)

    def try_batch(
        self, runner: Runner, batch_idx: int, data_batch: DataBatch
    ) -> None:
        """Let the trial run the batch of an iteration that is about to begin.

        Leaves no trace. Collective, and syncs the device, if there is a trial.
        """
        trial, guards = self.trial, find_guards(runner)
        # An open window has run forward passes.
        if trial is None or any(guard.is_open for guard in guards.values()):
            return
        guard = guards[trial.optimizer]
        if find_rise(guard) is None:
            self.trial = None  # the losses came down by themselves
        elif trial.is_over:
            return  # the update of this window rolls back
        elif not trial.run(runner, batch_idx, data_batch):
            self._accept(runner, guard, 'earlier weights cannot be tried')
        elif trial.is_over and not trial.blames_weights(guard):
            self._accept(runner, guard, trial.words())
        elif trial.is_over and trial.is_recovering(guard):
            trial.restart()
        elif trial.is_over:
            set_trial(guard, False)

    def first_bad(self, runner: Runner, optimizer: str) -> int:
        """Return the iteration at which losses began to rise.

        The median of a window is above the limit, so the run has diverged for
        about half of the window already.
        """
        # The trial has taken a few iterations since.
        if self.trial is not None:
            return self.trial.first_bad
        divergence = find_guards(runner)[optimizer].policy.divergence
        # Only the rule on divergence finds a rise.
        assert divergence is not None
        length = window_length(find_wrappers(runner)[optimizer])
        return int(runner.iter) + 1 - divergence.window * length

    def end_trial(self) -> None:
        """Drop the trial, because training has gone back."""
        self.trial = None

    def _accept(self, runner: Runner, guard: GuardProtocol, why: str) -> None:
        """Go on with losses that have risen."""
        self.trial = None
        level = guard.state.loss_level.accepted()
        guard.state = replace(guard.state, loss_level=level)
        say(
            f'mmnanguard: iteration {runner.iter + 1}: the losses have risen, '
            f'but training does not go back: {why}',
            logging.INFO,
            runner.logger,
        )


def find_rise(guard: GuardProtocol) -> Optional[Spike]:
    """Return the rise of losses that calls for a rollback, if any."""
    rule, state = guard.policy.divergence, guard.state
    if rule is None:
        return None
    return rule.find_risen(state.loss_level, state.recent_commits)


def set_trial(guard: GuardProtocol, is_needed: bool) -> None:
    """Set whether a rollback out of a divergence waits for a trial."""
    level = guard.state.loss_level
    if level.needs_trial is not is_needed:
        level = replace(level, needs_trial=is_needed)
        guard.state = replace(guard.state, loss_level=level)
