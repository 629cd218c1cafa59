import logging
from typing import Any, List, Optional, Set, Tuple

from mmengine.dist import (
    all_gather_object,
    broadcast_object_list,
    get_rank,
    get_world_size,
)
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mmnanguard.core import Autopsy, Cause, GuardConfigError, GuardEvent
from mmnanguard.registry import HOOKS

from .examination import Examination, settings_of
from .find_guards import find_wrappers
from .window import Window, window_of

__all__ = ['AutopsyHook']

KEY = 'nanguard_autopsies'


@HOOKS.register_module()
class AutopsyHook(Hook):
    """Finds out where a rejected update went bad, by running it again.

    The rejection has left everything as it was, so the same batch, random
    numbers and weights are at hand: the first operation that makes a
    non-finite number of finite ones is named, with its module, source line,
    numbers and samples; and whether it happens again, and in float32.

    Costs a copy of the random states and of the containers of a batch in
    each iteration, and a few forward and backward passes an autopsy. Nothing
    is hooked into the model, and a replay leaves no trace.

    On several ranks all run the same passes, since a model may communicate
    in forward; what is reported is what the rank saw on which the update
    went bad.

    Args:
        max_autopsies: In the run, resumes included; one for each culprit.
        overflows: Also look into routine overflows of the loss scale.

    Raises:
        GuardConfigError: If ``max_autopsies`` is negative.
    """

    priority = 'LOWEST'  # the last word before the batch is trained on

    def __init__(
        self, max_autopsies: int = 10, overflows: bool = False
    ) -> None:
        if not isinstance(max_autopsies, int) or max_autopsies < 0:
            raise GuardConfigError(
                f'AutopsyHook.max_autopsies is {max_autopsies!r}: it must be '
                'an integer of at least 0.'
            )
        self._max_autopsies = max_autopsies
        self._num_done = 0
        self._overflows = overflows
        self._culprits: Set[Tuple[str, ...]] = set()
        self._window: Optional[Window] = None

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        if self._num_done >= self._max_autopsies:
            self._window = None
            return
        self._window = window_of(runner)
        self._window.keep(runner, batch_idx, data_batch)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Optional[dict] = None,
    ) -> None:
        if self._window:
            self._window.compare(data_batch)

    def after_guard_event(self, runner: Runner, event: GuardEvent) -> None:
        culprit = (event.cause.value, *(bad.name for bad in event.params[:1]))
        is_due = (
            self._num_done < self._max_autopsies
            and culprit not in self._culprits
            and (self._overflows or not event.is_routine)
            and event.cause is not Cause.SPIKE  # nothing to look for
            and self._window is not None
        )
        # All or none: a pass may communicate.
        told = [is_due]
        broadcast_object_list(told)
        if not told[0]:
            return
        self._num_done += 1
        self._culprits.add(culprit)
        try:
            found = self._examine(runner, event)
        except Exception:
            if get_world_size() > 1:
                raise  # the others may wait for this rank
            runner.logger.exception(
                f'mmnanguard: the autopsy of {event.id} failed; training '
                'goes on'
            )
            return
        found = choose(all_gather_object(found), event)
        if not found.exact:
            runner.logger.warning(
                f'mmnanguard: the replay of {event.id} is not exact: its '
                'loss is not that of training, or the batch has changed'
            )
        is_compiled = any(map(is_compiled_module, runner.model.modules()))
        runner.logger.log(logging.WARNING, found.line(event.iter, is_compiled))
        runner.call_hook('after_guard_row', row=found.to_row())

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint[KEY] = dict(
            num_done=self._num_done, culprits=sorted(self._culprits)
        )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if runner._resume and KEY in checkpoint:
            self._num_done = checkpoint[KEY]['num_done']
            self._culprits = set(map(tuple, checkpoint[KEY]['culprits']))

    def _examine(self, runner: Runner, event: GuardEvent) -> Autopsy:
        wrappers = find_wrappers(runner)
        examination = Examination(
            runner.model,
            wrappers,
            settings_of(wrappers, event),
            self._window.batches if self._window else [],
        )
        # The event tells the loss of that rank.
        is_own = get_rank() == event.ranks[0]
        return examination.autopsy(
            event.id, event.optimizer, event.loss if is_own else None
        )


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
