import logging
from typing import Any, Dict, List, Optional, Set, Tuple

import torch
from mmengine.dist import broadcast_object_list, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from mmnanguard.core import Autopsy, GuardConfigError, GuardEvent
from mmnanguard.numerics import (
    Origin,
    Pass,
    ReplayWrapper,
    read_rng,
    run_pass,
    set_rng,
)
from mmnanguard.registry import HOOKS

from .batch_facts import sample_ids
from .batch_keeper import BatchKeeper, KeptBatch, tensors_in
from .find_guards import find_guards, find_wrappers

__all__ = ['AutopsyHook']


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

    On several ranks all run the same passes; what is reported is what the
    rank saw on which the update went bad.

    Args:
        max_autopsies: In this process.
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
        self._num_left = max_autopsies
        self._overflows = overflows
        self._culprits: Set[Tuple[str, ...]] = set()
        self._keeper = BatchKeeper()
        self._window: List[Tuple[int, KeptBatch, Dict[str, Any]]] = []

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        if self._num_left == 0:
            return
        guards = find_guards(runner).values()
        if not any(guard.losses for guard in guards):
            self._window = []
        kept = self._keeper.keep(data_batch)
        self._window.append((batch_idx, kept, read_rng()))

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Optional[dict] = None,
    ) -> None:
        if self._window:
            self._keeper.compare(data_batch, self._window[-1][1])

    def after_guard_event(self, runner: Runner, event: GuardEvent) -> None:
        culprit = (event.cause.value, *(bad.name for bad in event.params[:1]))
        if (
            self._num_left == 0
            or culprit in self._culprits
            or (event.is_routine and not self._overflows)
            or not self._window
        ):
            return
        self._num_left -= 1
        self._culprits.add(culprit)
        found = self._examine(runner, event)
        told = [found]
        if get_world_size() > 1:
            broadcast_object_list(told, src=event.ranks[0])
        runner.logger.log(logging.WARNING, told[0].line(event.iter))
        runner.call_hook('after_guard_row', row=told[0].to_row())

    def _examine(self, runner: Runner, event: GuardEvent) -> Autopsy:
        wrapper = find_wrappers(runner)[event.optimizer]
        dtype = getattr(wrapper, 'cast_dtype', None)
        first = self._run(runner, event, dtype, looks=True)
        in_fp32 = None
        if dtype is not None:
            in_fp32 = self._run(runner, event, None, looks=False).is_finite
        return describe(event, first, in_fp32, self._samples(first.origin))

    def _run(
        self,
        runner: Runner,
        event: GuardEvent,
        dtype: Optional[torch.dtype],
        looks: bool,
    ) -> Pass:
        """The same passes on every rank, whatever becomes of them."""
        scale = (event.loss_scale or {'before': 1.0})['before']
        device = next(runner.model.parameters()).device.type
        stand_ins = {
            name: ReplayWrapper(wrapper, scale, dtype, device)
            for name, wrapper in find_wrappers(runner).items()
        }
        batches = [kept.fresh() for _, kept, _ in self._window]

        def run() -> List[Tensor]:
            for batch, (_, _, rng) in zip(batches, self._window):
                set_rng(rng)
                runner.model.train_step(
                    batch,
                    optim_wrapper=stand_ins
                    if len(stand_ins) > 1
                    else stand_ins['default'],
                )
            return [
                loss.detach()
                for stand_in in stand_ins.values()
                for loss in stand_in.losses
            ]

        return run_pass(runner.model, run, tensors_in(batches), looks)

    def _samples(self, origin: Optional[Origin]) -> Tuple[str, ...]:
        """Names of the bad rows, if rows are samples there."""
        if origin is None:
            return ()
        index, kept, _ = self._window[-1]
        names = sample_ids(kept.data, index)
        if origin.num_rows != len(names):
            return ()
        return tuple(names[row] for row in origin.rows)


def describe(
    event: GuardEvent,
    first: Pass,
    in_fp32: Optional[bool],
    samples: Tuple[str, ...],
) -> Autopsy:
    found = Autopsy(
        id=event.id,
        rank=get_rank(),
        repeats=not first.is_finite,
        fp32_is_finite=in_fp32,
        remedy='fp32' if in_fp32 and not first.is_finite else '',
    )
    origin = first.origin
    if origin is None:
        return found
    return found.replace(
        phase=origin.phase,
        module=origin.module,
        module_type=origin.module_type,
        op=origin.op,
        source=origin.source,
        dtype=origin.dtype,
        input_absmax=origin.input_absmax,
        output_absmax=origin.output_absmax,
        dtype_max=torch.finfo(getattr(torch, origin.dtype)).max,
        batch_rows=origin.rows if samples else (),
        samples=samples,
    )
