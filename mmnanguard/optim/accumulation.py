from dataclasses import replace
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from mmengine.dist import all_gather_object
from torch import Tensor, nn
from torch import distributed as dist

from mmnanguard.core import (
    BadTensor,
    GuardConfigError,
    LeftOut,
    Observation,
    find_cause,
)
from mmnanguard.numerics.base.shards import is_sharded
from mmnanguard.numerics.update.agree import merge
from mmnanguard.numerics.update.blame import blame
from mmnanguard.numerics.update.grad_sum import (
    GradSum,
    find_ddp,
    reduced_params,
)
from mmnanguard.numerics.update.observe import diagnose, observe

from .undo import Undo

__all__ = ['MicroBatches', 'WholeWindow']


class WholeWindow:
    """A window is judged as a whole, by the gradients that it ends with.

    Attributes:
        num_batches: Micro-batches judged in the open window.
        num_left_out: Ever.
    """

    is_local = False  # ranks meet in the window's last backward pass
    num_batches = 0
    num_left_out = 0

    def bind(
        self, surroundings: Optional[nn.Module], count_steps: Callable[[], int]
    ) -> None:
        """See :meth:`Guard.bind`."""

    def begin(self, model: nn.Module) -> None:
        """A forward pass of ``model`` is next."""

    def judge_last(self) -> None:
        """The last forward pass has had its backward pass."""

    def end(self) -> None:
        """The window has had its last backward pass."""

    def drop(self) -> None:
        """Gradients were set to zero."""

    def complete(self, seen: Observation) -> Observation:
        """What was seen of the sum, with what was left out of it."""
        return seen

    def close(self) -> None:
        """The window is over."""


class Judged(NamedTuple):
    """A micro-batch that may not join.

    Attributes:
        number: In its window, from 1.
        iter: As ``Guard.iter``.
        seen: Of it, on this rank.
        bad: A few of its bad tensors.
    """

    number: int
    iter: int
    seen: Observation
    bad: Tuple[BadTensor, ...]


class MicroBatches(WholeWindow):
    """A micro-batch is judged before it joins its window, on its own rank.

    It goes from an ``optim_context`` to the end of ``update_params``, or
    where a loop calls ``backward`` itself, to the next context. One that is
    bad leaves no trace, and the average of the others makes the update. If
    none is left, the update is rejected.

    Ranks meet once a window, in one all-reduce of sums and counts: all
    backward passes run in DDP's ``no_sync``. Each micro-batch costs a host
    read and a copy of the buffers, the window one more gradient of each
    parameter; communication is not overlapped with backward.

    Args:
        guard: Whose windows these are.
    """

    is_local = True

    def __init__(self, guard: Any) -> None:
        self._guard = guard
        self._undo = Undo(guard.params.foreign)
        self._sum = GradSum()
        self._ddps: Dict[nn.Module, List[Any]] = {}
        self._reduced: Dict[Tensor, None] = {}  # an ordered set
        self.close()

    def close(self) -> None:
        self.num_batches = self._num_losses = self._num_good = 0
        self._own: List[Judged] = []
        self._left_out: Optional[LeftOut] = None
        self._has_ended = False
        self._sum.drop()
        self._undo.snapshot.close()

    def drop(self) -> None:
        if not self._has_ended:
            self._sum.drop()
            self.num_batches, self._own = 0, []
            self._num_losses = len(self._guard.losses)

    def bind(
        self, surroundings: Optional[nn.Module], count_steps: Callable[[], int]
    ) -> None:
        self._undo.bind(surroundings, count_steps)

    def begin(self, model: nn.Module) -> None:
        self.judge_last()
        if model not in self._ddps:
            if is_sharded(model):
                raise GuardConfigError(
                    "optim_wrapper.guard.accumulation='microbatch' judges "
                    'gradients before ranks share them, and with FSDP or '
                    'DTensors no rank ever holds its own: set '
                    "accumulation='window', or train with DDP."
                )
            self._ddps[model] = find_ddp(model)
            # As DDP knows them: one may be frozen later, for a while.
            reduced = reduced_params(self._ddps[model])
            self._reduced.update(dict.fromkeys(reduced))
        self._undo.take(model)

    def judge_last(self) -> None:
        """Judge the micro-batch if it has had its backward pass; syncs."""
        if len(self._guard.losses) > self._num_losses:
            self._judge()

    def _judge(self) -> None:
        guard = self._guard
        self.num_batches += 1
        params, grads = guard.params.trained()
        scale = guard.scaler.read(guard.params.optimizer)
        if scale.is_unscaled:
            raise GuardConfigError(
                "optim_wrapper.guard.accumulation is 'microbatch', and "
                'loss_scaler.unscale_ was called by hand: gradients of other '
                'micro-batches still carry the scale. Leave the call out, or '
                "set accumulation='window'."
            )
        seen, reading = observe(
            grads,
            guard.losses[self._num_losses :],
            guard.facts,
            self._undo.snapshot,
            scale,
        )
        if not seen.is_clean:
            seen = diagnose(seen, reading, grads, guard.weights())
            cause = find_cause(seen, guard.state, guard.policy)
            bad = blame(
                cause,
                params,
                grads,
                guard.weights(),
                reading,
                scale.carried,
                guard.names(),
            )
            judged = Judged(self.num_batches, guard.iter, seen, bad)
            self._own.append(judged)
            self.num_left_out += 1
            self._undo.put_back()
            del guard.losses[self._num_losses :]
            for param in params:
                param.grad = None
        self._sum.take(guard.params)
        self._num_losses = len(guard.losses)
        guard.facts = {}
        self._undo.snapshot.close()

    def end(self) -> None:
        """Leave the sum of all ranks where an optimizer looks for gradients,
        and a user's own code before the step; collective.

        Raises:
            GuardConfigError: With several ranks, if DDP does not average
                the gradients.
        """
        self.judge_last()
        if self._has_ended:
            return
        if any(param.grad is not None for param in self._guard.params):
            self._judge()  # of a backward pass past the wrapper's
        if self.num_batches == 0:
            return
        self._has_ended = True
        good, total = self.num_batches - len(self._own), self.num_batches
        if dist.is_available() and dist.is_initialized():
            good, total = self._reduce(good, total)
        self._num_good = good
        factor = total / good if good else 1.0
        self._sum.give_back(self._guard.params, factor)
        if good < total:
            losses = self._guard.losses or [torch.zeros(())]
            self._guard.losses = [loss * factor for loss in losses]
            self._num_losses = len(losses)
            self._gather(total)

    def _reduce(self, *counts: int) -> Tuple[int, ...]:
        ddps = [ddp for found in self._ddps.values() for ddp in found]
        if dist.get_world_size() > 1 and not ddps:
            raise GuardConfigError(
                "optim_wrapper.guard.accumulation is 'microbatch' on several "
                'ranks: the model that enters optim_context must be wrapped '
                "in DistributedDataParallel. Else set 'window'."
            )
        if not ddps:
            return counts
        for ddp in ddps:
            # As after a backward pass that DDP syncs: the next window
            # begins with the buffers of rank 0.
            ddp.require_forward_param_sync = True
        return self._sum.reduce(list(self._reduced), counts)

    def _gather(self, total: int) -> None:
        """What all ranks have left out; collective."""
        found = [
            (rank, judged)
            for rank, own in enumerate(all_gather_object(self._own))
            for judged in own
        ]
        seen = merge([judged.seen for _, judged in found], found[0][1].seen)
        culprits = [found[index] for index in seen.bad_ranks]
        self._left_out = LeftOut(
            replace(
                seen,
                bad_ranks=tuple(sorted({rank for rank, _ in culprits})),
                # MMEngine has divided it by the window's length.
                loss=seen.loss * self.num_batches,
            ),
            tuple((rank, one.number, one.iter) for rank, one in found),
            total,
            culprits[0][1].bad,
        )

    def complete(self, seen: Observation) -> Observation:
        left_out = self._left_out
        if left_out is None:
            return seen
        if self._num_good == 0:
            return replace(left_out.seen, left_out=left_out)
        # Weights are no single micro-batch's.
        weights_are_finite = left_out.seen.weights_are_finite
        return replace(
            seen, left_out=left_out, weights_are_finite=weights_are_finite
        )
