import logging
import math
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

import torch
from mmengine.dist import (
    all_gather_object,
    broadcast_object_list,
    get_rank,
    get_world_size,
)
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from mmnanguard.core import Autopsy, GuardConfigError, GuardEvent
from mmnanguard.numerics import (
    Pass,
    ReplayWrapper,
    read_rng,
    run_pass,
    set_rng,
)
from mmnanguard.registry import HOOKS

from .batch_facts import sample_ids
from .batch_keeper import BatchKeeper, KeptBatch, tensors_of_samples
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

    On several ranks all run the same passes, since a model may communicate
    in forward; what is reported is what the rank saw on which the update
    went bad.

    Args:
        max_autopsies: In this process; one for each culprit.
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
            self._window = []
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
        is_due = (
            self._num_left > 0
            and culprit not in self._culprits
            and (self._overflows or not event.is_routine)
            and bool(self._window)
        )
        # All or none: a pass may communicate.
        told = [is_due]
        broadcast_object_list(told)
        if not told[0]:
            return
        self._num_left -= 1
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

    def _examine(self, runner: Runner, event: GuardEvent) -> Autopsy:
        wrapper = find_wrappers(runner)[event.optimizer]
        dtype = getattr(wrapper, 'cast_dtype', None)
        first = self._run(runner, event, dtype, looks=True)
        in_fp32 = None
        if dtype is not None:
            in_fp32 = self._run(runner, event, None, looks=False).is_finite
        found = describe(event, first, in_fp32)
        if first.origin is not None:
            rows, samples = self._name(first.origin.samples)
            found = found.replace(batch_rows=rows, samples=samples)
        is_exact = all(kept.is_exact for _, kept, _ in self._window)
        if get_rank() == event.ranks[0]:  # whose loss the event tells
            replayed = first.losses[event.optimizer]
            is_exact = is_exact and is_same_loss(event.loss, replayed)
        return found.replace(exact=is_exact)

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

        def run() -> Dict[str, List[Tensor]]:
            for batch, (_, _, rng) in zip(batches, self._window):
                set_rng(rng)
                runner.model.train_step(
                    batch,
                    optim_wrapper=stand_ins
                    if len(stand_ins) > 1
                    else stand_ins['default'],
                )
            return {name: one.losses for name, one in stand_ins.items()}

        inputs = [
            (tensor, tuple(start + row for row in rows))
            for batch, (start, names) in zip(batches, self._names())
            for tensor, rows in tensors_of_samples(batch, len(names))
        ]
        return run_pass(runner.model, run, inputs, looks)

    def _names(self) -> Iterator[Tuple[int, List[str]]]:
        """Of each micro-batch, the number of its first sample in the window
        and the names of all.
        """
        start = 0
        for index, kept, _ in self._window:
            names = sample_ids(kept.data, index)
            yield start, names
            start += len(names)

    def _name(
        self, samples: Tuple[int, ...]
    ) -> Tuple[Tuple[int, ...], Tuple[str, ...]]:
        """Rows and names, but not of all of a batch at once."""
        rows, names = [], []
        for start, batch in self._names():
            own = [s - start for s in samples if 0 <= s - start < len(batch)]
            if len(own) < max(len(batch), 2):
                rows += own
                names += [batch[row] for row in own]
        return tuple(rows), tuple(names)


def describe(
    event: GuardEvent, first: Pass, in_fp32: Optional[bool]
) -> Autopsy:
    found = Autopsy(
        id=event.id,
        rank=get_rank(),
        repeats=not first.is_finite,
        fp32_is_finite=in_fp32,
        remedy='fp32' if in_fp32 and not first.is_finite else '',
        outputs=first.outputs,
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


def is_same_loss(trained: float, replayed: float) -> bool:
    """A fault that did not happen again says nothing about the batch."""
    if math.isfinite(trained) and math.isfinite(replayed):
        return trained == replayed
    return True


def is_compiled_module(module: nn.Module) -> bool:
    return (
        hasattr(module, '_orig_mod')
        or getattr(module, '_compiled_call_impl', None) is not None
        or hasattr(
            vars(module).get('train_step'), '_torchdynamo_orig_callable'
        )
    )
