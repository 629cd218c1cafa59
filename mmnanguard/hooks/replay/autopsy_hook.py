"""The hook that replays a rejected window to find the operation at fault.

:class:`~.window_replay.WindowReplay` does the replay on a rank; this module
decides which events get a replay, and makes all ranks agree on the result.
"""

import logging
from contextlib import suppress
from typing import Dict, Iterable, List, Mapping, Optional, Set, Tuple

from mmengine.dist import (
    all_gather_object,
    broadcast_object_list,
    get_rank,
    get_world_size,
)
from mmengine.runner import Runner
from torch import nn

from mmnanguard._console import say
from mmnanguard._support.console_line import fit
from mmnanguard._support.escape import escape
from mmnanguard.core import Autopsy, GuardConfigError, GuardEvent
from mmnanguard.core.causes import CAUSES
from mmnanguard.core.checks import check_value, is_count
from mmnanguard.core.rows.input_row import InputRow
from mmnanguard.core.rows.remedy_row import RemedyRow
from mmnanguard.core.rules.recent_commits import find_growth
from mmnanguard.numerics.base.shards import is_gathered
from mmnanguard.registry import HOOKS

from .._shared.compiled import is_compiled
from .._shared.find_guards import find_guards, find_wrappers
from .._shared.hook_arguments import Checkpoint, Row
from .engine_copy import copy_engine
from .narrow_down import samples_that_spoil
from .try_cures import try_cures
from .window import Window, WindowHook
from .window_replay import WindowReplay, settings_of

__all__ = ['AutopsyHook']

KEY = 'nanguard_autopsies'
# Rejections with an equal cause and first parameter may still have several
# culprits. Three replays find most of them and bound the cost.
MAX_SIMILAR = 3


@HOOKS.register_module()
class AutopsyHook(WindowHook):
    """Finds out where a rejected update went bad, by running it again.

    The rejection has left everything as it was, so the batch, random numbers
    and weights of the window are at hand. The row of the autopsy names the
    first operation that made a non-finite number of finite ones, with its
    module, source line, numbers and samples. It also says whether the fault
    happens again, and whether it happens in float32.

    Each iteration costs a copy of the random states and of the containers of
    the batch; each autopsy costs a few forward and backward passes. Nothing
    is hooked into the model. A replay leaves traces in plain Python state
    only: attributes, a model's own generators, gradient hooks.

    With several ranks, all of them run the passes, since a model may
    communicate in forward. The autopsy of the rank on which the update went
    bad is reported.

    Args:
        max_autopsies: Largest number of autopsies in the run, resumes
            included. Each culprit is reported once.
        overflows: Whether routine overflows of the loss scale get an autopsy
            too.
        try_cures: Whether the window is run again with each cure that a user
            could apply: bfloat16, a lower loss scale, without the samples at
            fault. Each costs a forward and a backward pass. If the operation
            mixes the samples of a batch, one process also looks for the
            sample without which the window is finite, in at most
            2 * log2(samples) + 1 passes.

    With DeepSpeed, the passes run in a copy of the model, which takes memory
    for its weights.

    Raises:
        GuardConfigError: If ``max_autopsies`` is negative, and at the start
            of training with ZeRO 3.
    """

    def __init__(
        self,
        max_autopsies: int = 10,
        overflows: bool = False,
        try_cures: bool = True,
    ) -> None:
        check_value(
            is_count(max_autopsies, least=0),
            'AutopsyHook.max_autopsies',
            max_autopsies,
            'an integer of at least 0',
        )
        self._max_autopsies = max_autopsies
        self._num_done = 0
        self._overflows = overflows
        self._try_cures = try_cures
        self._culprits: Set[Tuple[str, ...]] = set()
        # The number of autopsies by similarity_key() of their events.
        self._num_similar: Dict[Tuple[str, ...], int] = {}
        # Of the last event with bad inputs.
        self._bad_keys: Dict[str, Tuple[str, ...]] = {}
        # The id of the last event whose bad inputs were all masks.
        self._masked = ''

    def before_train(self, runner: Runner) -> None:
        """Refuse a model that cannot be run again."""
        if is_gathered(runner.model):
            raise GuardConfigError(
                'AutopsyHook cannot run a window again with ZeRO 3, which has '
                'weights only while the engine runs a pass. Leave the hook '
                'out, and find the operation with ZeRO 2 or a smaller model.'
            )

    @property
    def is_spent(self) -> bool:
        """Whether the run has had all its autopsies."""
        return self._num_done >= self._max_autopsies

    def after_guard_event(self, runner: Runner, event: GuardEvent) -> None:
        """Examine a rejected update. Collective."""
        key = similarity_key(event)
        # All ranks or none: a pass may communicate, and a rank that stays
        # out would leave the other ranks waiting.
        decision = [self._is_due(event, key)]
        broadcast_object_list(decision)
        if not decision[0] or self._window is None:
            return
        self._num_done += 1
        self._num_similar[key] = self._num_similar.get(key, 0) + 1
        try:
            model = self._model_of(runner)
            if model is None:
                return
            autopsy = self._examine(runner, model, event, self._window)
        except Exception as error:
            if get_world_size() > 1:
                # Other ranks may wait for this rank in a collective, and
                # would hang if it went on.
                raise
            # The model's own code may raise anything when it runs again.
            reason = escape(f'{type(error).__name__}: {error}'.split('\n')[0])
            say(
                f'mmnanguard: the autopsy of {event.id} failed ({reason}); '
                'training goes on',
                logging.WARNING,
                runner.logger,
            )
            runner.logger.debug('mmnanguard: the traceback', exc_info=True)
            return
        self._report(runner, event, autopsy)

    def _report(
        self, runner: Runner, event: GuardEvent, autopsy: Autopsy
    ) -> None:
        """Log the autopsy, and write its row if its culprit is new."""
        find_guards(runner)[event.optimizer].explain(event, autopsy)
        culprit: Tuple[str, ...] = autopsy.phase, autopsy.module, autopsy.op
        # Bad inputs have no operation, so their samples tell them apart.
        is_of_samples = autopsy.tried.get('without_samples', False)
        if autopsy.phase == 'input' or is_of_samples:
            culprit += autopsy.samples
        compiled = is_compiled(runner.model)
        line = autopsy.line(event.iter, compiled)
        if culprit in self._culprits:
            known = ['no row: an earlier row names this culprit', '']
            say(fit(line, known), logging.INFO, runner.logger)
            return
        self._culprits.add(culprit)
        # Further samples may be at fault as well.
        if is_of_samples:
            key = similarity_key(event)
            self._num_similar[key] = max(self._num_similar[key] - 1, 1)
        if not autopsy.exact:
            say(
                f'mmnanguard: the replay of {event.id} is not exact: another '
                'optimizer has moved since, the batch has changed, or the '
                'loss is not that of training',
                logging.WARNING,
                runner.logger,
            )
        say(line, logging.WARNING, runner.logger)
        runner.call_hook('after_guard_row', row=autopsy.to_row())

    def _is_due(self, event: GuardEvent, key: Tuple[str, ...]) -> bool:
        """Whether the event gets an autopsy.

        A streak of skips gets an autopsy at its start only. Similar
        rejections get several, because each may have another culprit.
        """
        num_similar = self._num_similar.get(key, 0)
        is_new = num_similar == 0 or (
            num_similar < MAX_SIMILAR and event.consecutive_skips <= 1
        )
        return (
            is_new
            and not self.is_spent
            and (self._overflows or not event.is_routine)
            and CAUSES[event.cause].is_replayable
            and self._window is not None
        )

    def after_guard_row(self, runner: Runner, row: Row) -> None:
        """Forget similar rejections after a remedy; note the bad inputs.

        A rejection after a remedy has another culprit, however similar it is.
        """
        if row['kind'] == RemedyRow.KIND:
            self._num_similar = {}
        if row['kind'] == InputRow.KIND:
            self._bad_keys = {row['id']: tuple(row['keys'])}
            if set(row['keys']) <= set(row.get('usual', ())):
                self._masked = row['id']

    def before_save_checkpoint(
        self, runner: Runner, checkpoint: Checkpoint
    ) -> None:
        """Save the budget and the culprits, which outlive a resume."""
        # Sorted lists of builtins, so that the file loads with
        # ``weights_only=True`` and equal states make equal files.
        checkpoint[KEY] = dict(
            num_done=self._num_done,
            culprits=sorted(self._culprits),
            looks=sorted(self._num_similar.items()),
        )

    def after_load_checkpoint(
        self, runner: Runner, checkpoint: Checkpoint
    ) -> None:
        """Load the budget and the culprits of a resumed run."""
        # ``load_from`` starts another run, which has a budget of its own.
        if runner._resume and KEY in checkpoint:
            state = checkpoint[KEY]
            self._num_done = state['num_done']
            self._culprits = set(map(tuple, state['culprits']))
            self._num_similar = {}
            for key, num_similar in state['looks']:
                self._num_similar[tuple(key)] = num_similar

    def _model_of(self, runner: Runner) -> Optional[nn.Module]:
        """Return the model to run the window in, or None. Collective."""
        model: object = runner.model
        if isinstance(model, nn.Module):
            return model
        copied = copy_engine(model)
        if all(all_gather_object(copied is not None)):
            return copied
        say(
            'mmnanguard: no autopsy: the model in the engine cannot be copied',
            logging.WARNING,
            runner.logger,
        )
        return None

    def _examine(
        self,
        runner: Runner,
        model: nn.Module,
        event: GuardEvent,
        window: Window,
    ) -> Autopsy:
        """Replay the window. Collective: all ranks run equally many passes."""
        wrappers = find_wrappers(runner)
        replay = WindowReplay(
            model, wrappers, settings_of(wrappers, event), window.batches
        )
        # The event holds the loss of its first rank, which says nothing of
        # the losses of other ranks.
        has_loss = get_rank() == event.ranks[0]
        loss = event.loss if has_loss else None
        autopsy = replay.autopsy(
            event.id, event.optimizer, loss, event.id == self._masked
        )
        exact = autopsy.exact and window.is_exact(runner)
        autopsies = all_gather_object(autopsy.replace(exact=exact))
        autopsy = choose(autopsies, event)
        # Each rank tries the remedy on its own batch. A rank on which it
        # does not help has '', the smallest string.
        confirmed = all_gather_object(replay.confirm(autopsy))
        keys = autopsy.keys
        is_of_inputs = CAUSES[event.cause].is_of_inputs and not keys
        if autopsy.phase == 'input' or is_of_inputs:
            keys = self._bad_keys.get(event.id, event.bad_keys)
        autopsy = autopsy.replace(
            keys=keys,
            remedy=min(result.remedy for result in confirmed),
            tried=finite_on_all(result.tried for result in confirmed),
        )
        if not self._try_cures:
            return autopsy
        # In a run that exploded, any sample may be the first to overflow.
        state = find_guards(runner)[event.optimizer].state
        is_of_batch = (
            autopsy.repeats
            and autopsy.phase != 'weight'
            and find_growth(state.recent_commits) is None
        )
        if is_of_batch and not autopsy.samples:
            # A part of a batch may be more than the model's code can run.
            with suppress(Exception):
                autopsy = replay.blame(autopsy, samples_that_spoil(replay))
        can_leave_out = any(all_gather_object(replay.can_leave_out(autopsy)))
        tried = try_cures(replay, autopsy, event, can_leave_out)
        on_all = finite_on_all(all_gather_object(tried))
        return autopsy.replace(tried={**autopsy.tried, **on_all})


def finite_on_all(ranks: Iterable[Mapping[str, bool]]) -> Dict[str, bool]:
    """Return for each cure whether the replay was finite on all ranks.

    A cure that failed to run on a rank is left out.
    """
    first, *others = ranks
    tried = dict(first)
    for other in others:
        for cure in list(tried):
            if cure in other:
                tried[cure] = tried[cure] and other[cure]
            else:
                del tried[cure]
    return tried


def similarity_key(event: GuardEvent) -> Tuple[str, ...]:
    """Return cause and first blamed parameter, which similar events share."""
    if event.params:
        return event.cause.value, event.params[0].name
    return (event.cause.value,)


def choose(autopsies: List[Autopsy], event: GuardEvent) -> Autopsy:
    """Pick the autopsy of the rank on which the fault originated.

    The choice is exact only if the autopsies of all ranks are.
    """

    def order(autopsy: Autopsy) -> Tuple[bool, bool, bool, int]:
        return (
            # An autopsy without a phase did not see the fault begin.
            not autopsy.phase,
            # A collective operation brought the fault from another rank.
            autopsy.op.startswith('c10d'),
            autopsy.rank not in event.ranks,
            autopsy.rank,
        )

    exact = all(autopsy.exact for autopsy in autopsies)
    return min(autopsies, key=order).replace(exact=exact)
