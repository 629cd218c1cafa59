"""Losses that are not finite: which parts, how often, and how loud."""

import logging
import math
from typing import Dict, List, Mapping, Set

import torch
from mmengine.logging import MessageHub
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner

from mmnanguard._console import say
from mmnanguard.core import GuardEvent
from mmnanguard.core.rules.decide import MOST_HARMLESS, is_over
from mmnanguard.numerics.guard_protocol import GuardProtocol

from .._shared.find_guards import find_wrappers

__all__ = ['LossParts', 'level_of', 'logged_losses', 'warn_of_no_commit']

# Number of updates without a commit after which the user is warned.
LEAST_IDLE = 64


class LossParts:
    """Counts the iterations in which a part of the loss was not finite.

    The counts are those of this rank and of this process.

    Args:
        start: The iteration at which the process began, from 0.

    Attributes:
        in_window: The parts that were bad in the present window.
    """

    def __init__(self, start: int = 0) -> None:
        self._start = start
        self._counts: Dict[str, int] = {}
        self.in_window: Set[str] = set()
        self._warned_optimizers: Set[str] = set()

    def note(self, hub: MessageHub, keys: List[str]) -> None:
        """Count the parts of one iteration; no sync.

        Args:
            hub: MMEngine's hub, which has the logged values on the host.
            keys: The names of the values that the model returned.
        """
        bad = []
        for key in keys:
            buffer = hub.log_scalars.get(f'train/{key}')
            if 'loss' in key and buffer is not None:
                values, _ = buffer.data
                if len(values) > 0 and not math.isfinite(values[-1]):
                    bad.append(key)
        # MMEngine sums the parts under the key 'loss'.
        if len(bad) > 1 and 'loss' in bad:
            bad.remove('loss')
        for key in bad:
            self._counts[key] = self._counts.get(key, 0) + 1
        self.in_window.update(bad)

    def of(self, event: GuardEvent, iteration: int) -> Dict[str, object]:
        """Return the fields of an event about the parts of its window.

        Args:
            event: The event.
            iteration: The iteration of the event, from 1.
        """
        if math.isfinite(event.loss):
            return {}
        counts = {key: self._counts[key] for key in sorted(self.in_window)}
        return dict(bad_losses=counts, num_iters=iteration - self._start)

    def warn_of_commit(self, runner: Runner, event: GuardEvent) -> None:
        """Say once why updates are committed in spite of their loss."""
        if event.optimizer in self._warned_optimizers:
            return
        self._warned_optimizers.add(event.optimizer)
        kind = 'NAN' if math.isnan(event.loss) else 'INF'
        cure = 'mend the operation, which an autopsy (--guard full) names'
        if isinstance(find_wrappers(runner)[event.optimizer], AmpOptimWrapper):
            cure = 'compute it in float32'
        say(
            f"mmnanguard: optimizer '{event.optimizer}': THE LOSS IS {kind} "
            f'IN {MOST_HARMLESS} UPDATES, MORE THAN ONE IN TEN, BUT ITS '
            'GRADIENTS ARE FINITE NOW: such updates are committed from here '
            'on, as without a guard, while they are so many. Look at '
            f'{event.bad_losses_in_words() or "the parts of the loss"}: '
            f'{cure}, or leave out of it what has no gradient.',
            logging.ERROR,
            runner.logger,
        )

    def warn_of_rate(self, runner: Runner, guard: GuardProtocol) -> None:
        """Say once that a run goes on above ``max_skip_rate``."""
        recent, key = guard.state.recent_skips, f'{guard.name} rate'
        if key in self._warned_optimizers or not is_over(recent, guard.policy):
            return
        self._warned_optimizers.add(key)
        say(
            f"mmnanguard: optimizer '{guard.name}': {sum(recent)} OF THE LAST "
            f"{len(recent)} UPDATES WERE REJECTED: MMEngine's loss scaler "
            'skips bad gradients, too, so the run goes on with the others. '
            'The lines above name the causes; a number other than the '
            'default in optim_wrapper.guard.max_skip_rate ends such a run.',
            logging.ERROR,
            runner.logger,
        )


def logged_losses(outputs: Mapping[str, object]) -> Dict[str, float]:
    """Return the parts of the loss that the model logged; syncs."""
    losses = {}
    for key, value in outputs.items():
        # MMEngine sums the parts under the key 'loss'; the event has the sum.
        if 'loss' in key and key != 'loss':
            losses[key] = float(torch.as_tensor(value).detach())
    return losses


def level_of(event: GuardEvent) -> int:
    """Return the level at which the event is logged.

    A dataset may have many batches that reject their update and do no harm.
    They are shown at intervals that double.
    """
    # Overflows are expected while the loss scale is not yet proven.
    if event.is_routine:
        return logging.INFO
    # The first one is said in capitals.
    if event.is_harmless_commit:
        return logging.DEBUG
    if event.counts or is_power_of_two(event.total_skips):
        return logging.WARNING
    return logging.DEBUG


def warn_of_no_commit(runner: Runner, guard: GuardProtocol) -> None:
    """Say that nothing is learnt, at intervals that double.

    Updates that do no harm never halt a run, however many there are.
    """
    commits = guard.state.recent_commits
    idle = guard.state.num_updates
    if commits:
        idle -= commits[-1].update
    if idle < LEAST_IDLE or not is_power_of_two(idle):
        return
    hint = ''
    if find_wrappers(runner)[guard.name]._accumulative_counts > 1:
        hint = (
            ' One such micro-batch costs its whole window, unless '
            "optim_wrapper.guard.accumulation is 'microbatch'."
        )
    say(
        f"mmnanguard: optimizer '{guard.name}': NONE OF THE LAST {idle} "
        'UPDATES WAS COMMITTED, because their losses or inputs are not '
        f'finite, although gradients are. See the lines above.{hint}',
        logging.ERROR,
        runner.logger,
    )


def is_power_of_two(number: int) -> bool:
    """Whether a positive number is 1, 2, 4, 8, ..."""
    return number & (number - 1) == 0
