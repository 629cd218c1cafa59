from typing import Dict, List, Set, Tuple

from mmengine.dist import (
    all_gather_object,
    broadcast_object_list,
    get_rank,
    get_world_size,
)
from mmengine.runner import Runner
from torch import nn

from mmnanguard.core import Autopsy, GuardEvent
from mmnanguard.core.causes import CAUSES
from mmnanguard.core.checks import check_value, is_count
from mmnanguard.core.rows.remedy_row import RemedyRow
from mmnanguard.registry import HOOKS

from .._shared.find_guards import find_wrappers
from .._shared.hook_arguments import Checkpoint, Row
from .window import Window, WindowHook
from .window_replay import WindowReplay, settings_of

__all__ = ['AutopsyHook']

KEY = 'nanguard_autopsies'
MAX_LOOKS = 3


@HOOKS.register_module()
class AutopsyHook(WindowHook):
    """Finds out where a rejected update went bad, by running it again.

    The rejection has left everything as it was, so the same batch, random
    numbers and weights are at hand: the first operation that makes a
    non-finite number of finite ones is named, with its module, source line,
    numbers and samples; and whether it happens again, and in float32.

    Costs a copy of the random states and of the containers of a batch in
    each iteration, and a few forward and backward passes an autopsy. Nothing
    is hooked into the model. A replay leaves no trace but in plain Python
    state: attributes, generators of a model's own, gradient hooks.

    On several ranks all run the same passes, since a model may communicate
    in forward; what is reported is what the rank saw on which the update
    went bad.

    Args:
        max_autopsies: In the run, resumes included; one for each culprit.
        overflows: Also look into routine overflows of the loss scale.

    Raises:
        GuardConfigError: If ``max_autopsies`` is negative.
    """

    def __init__(
        self, max_autopsies: int = 10, overflows: bool = False
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
        self._culprits: Set[Tuple[str, ...]] = set()
        self._looks: Dict[Tuple[str, ...], int] = {}

    @property
    def is_spent(self) -> bool:
        return self._num_done >= self._max_autopsies

    def after_guard_event(self, runner: Runner, event: GuardEvent) -> None:
        about = event.cause.value, *(bad.name for bad in event.params[:1])
        # All or none: a pass may communicate.
        told = [self._is_due(event, about)]
        broadcast_object_list(told)
        if not told[0] or self._window is None:
            return
        self._num_done += 1
        self._looks[about] = self._looks.get(about, 0) + 1
        try:
            found = self._examine(runner, event, self._window)
        except Exception:
            if get_world_size() > 1:
                raise  # the others may wait for this rank
            runner.logger.exception(
                f'mmnanguard: the autopsy of {event.id} failed; training '
                'goes on'
            )
            return
        culprit: Tuple[str, ...] = found.phase, found.module, found.op
        if found.phase == 'input':
            culprit += found.samples
        is_compiled = any(map(is_compiled_module, runner.model.modules()))
        line = found.line(event.iter, is_compiled)
        if culprit in self._culprits:
            runner.logger.info(f'{line} (no row: an earlier one has said it)')
            return
        self._culprits.add(culprit)
        if not found.exact:
            runner.logger.warning(
                f'mmnanguard: the replay of {event.id} is not exact: another '
                'optimizer has moved since, the batch has changed, or the '
                'loss is not that of training'
            )
        runner.logger.warning(line)
        runner.call_hook('after_guard_row', row=found.to_row())

    def _is_due(self, event: GuardEvent, about: Tuple[str, ...]) -> bool:
        """A streak is looked into at its start, and what looks the same a
        few times: the culprit may be another one.
        """
        num_looks = self._looks.get(about, 0)
        is_new = num_looks == 0 or (
            num_looks < MAX_LOOKS and event.consecutive_skips <= 1
        )
        return (
            is_new
            and not self.is_spent
            and (self._overflows or not event.is_routine)
            and CAUSES[event.cause].is_replayable
            and self._window is not None
        )

    def after_guard_row(self, runner: Runner, row: Row) -> None:
        """What goes bad after a remedy has another culprit."""
        if row['kind'] == RemedyRow.KIND:
            self._looks = {}

    def before_save_checkpoint(
        self, runner: Runner, checkpoint: Checkpoint
    ) -> None:
        checkpoint[KEY] = dict(
            num_done=self._num_done,
            culprits=sorted(self._culprits),
            looks=sorted(self._looks.items()),
        )

    def after_load_checkpoint(
        self, runner: Runner, checkpoint: Checkpoint
    ) -> None:
        if runner._resume and KEY in checkpoint:
            self._num_done = checkpoint[KEY]['num_done']
            self._culprits = set(map(tuple, checkpoint[KEY]['culprits']))
            self._looks = {
                tuple(about): num for about, num in checkpoint[KEY]['looks']
            }

    def _examine(
        self, runner: Runner, event: GuardEvent, window: Window
    ) -> Autopsy:
        """Collective: as many passes on each rank."""
        wrappers = find_wrappers(runner)
        examination = WindowReplay(
            runner.model,
            wrappers,
            settings_of(wrappers, event),
            window.batches,
        )
        # The event tells the loss of that rank.
        is_own = get_rank() == event.ranks[0]
        found = examination.autopsy(
            event.id, event.optimizer, event.loss if is_own else None
        )
        exact = found.exact and window.is_exact(runner)
        found = choose(all_gather_object(found.replace(exact=exact)), event)
        remedies = all_gather_object(examination.confirm(found).remedy)
        return found.replace(remedy=min(remedies))  # '' on any is enough


def choose(found: List[Autopsy], event: GuardEvent) -> Autopsy:
    """Of the ranks' autopsies, one that saw the fault begin and did not get
    it from another rank.
    """
    chosen = min(
        found,
        key=lambda one: (
            not one.phase,
            one.op.startswith('c10d'),
            one.rank not in event.ranks,
            one.rank,
        ),
    )
    return chosen.replace(exact=all(one.exact for one in found))


def is_compiled_module(module: nn.Module) -> bool:
    return (
        hasattr(module, '_orig_mod')
        or getattr(module, '_compiled_call_impl', None) is not None
        or hasattr(
            vars(module).get('train_step'), '_torchdynamo_orig_callable'
        )
    )
