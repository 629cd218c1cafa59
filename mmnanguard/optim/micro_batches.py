"""Windows whose micro-batches are judged one by one."""

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Dict, List, NamedTuple, Optional, Tuple

import torch
from mmengine.dist import all_gather_object
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mmnanguard.core import (
    BadTensor,
    GuardConfigError,
    LeftOut,
    Observation,
    find_cause,
)
from mmnanguard.core.rules.decide import fails_again, starves_without
from mmnanguard.numerics.base.comm_hooks import name_hooks
from mmnanguard.numerics.base.shards import is_sharded
from mmnanguard.numerics.snapshot.change_tracker import ChangeTracker
from mmnanguard.numerics.snapshot.snapshot import Snapshot
from mmnanguard.numerics.snapshot.tensor_backup import TensorBackup
from mmnanguard.numerics.update.agree import merge
from mmnanguard.numerics.update.blame import blame
from mmnanguard.numerics.update.grad_sum import (
    GradSum,
    find_ddp,
    reduced_params,
)
from mmnanguard.numerics.update.observe import diagnose, find_suspects, observe

from .empty_buffers import find_empty_buffers
from .guarded_params import GuardedParams
from .window import Window, Windows

if TYPE_CHECKING:
    from .guard import Guard

__all__ = ['MicroBatches']


class BadBatch(NamedTuple):
    """A micro-batch that is left out of its window.

    Attributes:
        number: The number of the micro-batch in its window, from 1.
        iter: The iteration of the micro-batch, as in ``Guard.iter``.
        seen: The observation of the micro-batch on this rank.
        bad: A few of its bad tensors.
    """

    number: int
    iter: int
    seen: Observation
    bad: Tuple[BadTensor, ...]


class MicroBatches(Windows):
    """Opens windows in which each rank judges its micro-batches itself.

    A micro-batch lasts from an ``optim_context`` to the end of
    ``update_params``, or to the next context if a loop calls ``backward``
    itself. A bad micro-batch leaves no trace, and the average of the good
    micro-batches makes the update. Without any, the update is rejected.

    All backward passes run in DDP's ``no_sync``, and ranks meet once a
    window, in one all-reduce of sums and counts. Each micro-batch costs a
    host read and a copy of the buffers, and a window costs the memory of one
    more gradient of each parameter. Communication does not overlap with
    backward.

    Args:
        guard: The guard whose windows these are; it is only read.
    """

    is_local = True

    def __init__(self, guard: 'Guard') -> None:
        super().__init__(guard.others)
        self.guard = guard
        self._batch_tracker = ChangeTracker(guard.others)
        self._ddps: Dict[nn.Module, List[DistributedDataParallel]] = {}
        self._reduced: Dict[Tensor, None] = {}  # an ordered set

    def open(self) -> Window:
        """Return a new window."""
        return MicroBatchWindow(Snapshot(self._tracker), self)

    def open_batch(self) -> Snapshot:
        """Return the copies of a new micro-batch."""
        return Snapshot(self._batch_tracker)

    def enter(self, model: nn.Module) -> None:
        """Find the parts of a model that DDP reduces.

        Raises:
            GuardConfigError: If the model is sharded or has a communication
                hook.
        """
        if model in self._ddps:
            return
        if is_sharded(model):
            raise GuardConfigError(
                "optim_wrapper.guard.accumulation='microbatch' judges "
                'gradients before ranks share them, and with FSDP or '
                'DTensors no rank ever holds its own: set '
                "accumulation='window', or train with DDP."
            )
        refuse_comm_hooks(model)
        self._ddps[model] = find_ddp(model)
        # DDP keeps this list, even if a parameter is frozen for a while.
        reduced = reduced_params(self._ddps[model])
        self._reduced.update(dict.fromkeys(reduced))

    def reduce(self, grad_sum: GradSum, *counts: int) -> Tuple[int, ...]:
        """Average the sum over ranks and return the summed counts.

        Collective.

        Raises:
            GuardConfigError: With several ranks, if DDP does not average
                the gradients.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return counts
        ddps = list(chain.from_iterable(self._ddps.values()))
        if dist.get_world_size() > 1 and not ddps:
            raise GuardConfigError(
                "optim_wrapper.guard.accumulation is 'microbatch' on several "
                'ranks: the model that enters optim_context must be wrapped '
                "in DistributedDataParallel. Else set 'window'."
            )
        if not ddps:
            return counts
        for ddp in ddps:
            refuse_comm_hooks(ddp)  # it may have been added since
            # As after a backward pass that DDP syncs: the next window
            # begins with the buffers of rank 0.
            ddp.require_forward_param_sync = True
        return grad_sum.reduce(list(self._reduced), counts)


def refuse_comm_hooks(model: nn.Module) -> None:
    """Raise GuardConfigError if a model has communication hooks."""
    names = name_hooks(model)
    if names:
        raise GuardConfigError(
            "optim_wrapper.guard.accumulation='microbatch' adds gradients up "
            f'in an all-reduce of its own, and {", ".join(names)}, a '
            "communication hook of DDP, would never run: set accumulation='"
            "window', which runs it, or register no hook."
        )


class MicroBatchWindow(Window):
    """One window, whose micro-batches are judged before they join it.

    ``losses`` holds the losses of the good micro-batches, and ``facts`` the
    flags of the present micro-batch.

    Args:
        snapshot: The copies of what the window's forward passes change.
        batches: The state that is kept from window to window.
    """

    has_gradients = False

    def __init__(self, snapshot: Snapshot, batches: MicroBatches) -> None:
        super().__init__(snapshot)
        self._batches = batches
        self._batch_snapshot = batches.open_batch()
        self._batch_losses: List[Tensor] = []
        self._sum = GradSum()
        self._bad_batches: List[BadBatch] = []
        self._num_good = 0
        self._left_out: Optional[LeftOut] = None

    @property
    def is_open(self) -> bool:
        """Whether a backward pass has run in this window."""
        return bool(self.losses or self._batch_losses or self.num_batches)

    def enter(self, model: nn.Module) -> None:
        """Judge the last micro-batch and prepare for the next; may sync."""
        self.judge_last()
        self._batches.enter(model)
        self._batch_snapshot.take(model)
        super().enter(model)

    def add_loss(self, loss: Tensor, iteration: Optional[int] = None) -> None:
        """Note the loss of one finished backward pass; no sync."""
        value = loss.detach()
        self._batch_losses.append(value if value.dim() == 0 else value.sum())
        self._note_backward(iteration)

    def holds_gradients(self, params: GuardedParams) -> bool:
        """Whether gradients of this window exist; no sync."""
        # Judged micro-batches are summed elsewhere, or left out.
        return self.num_batches > 0 or super().holds_gradients(params)

    def drop_pending(self) -> None:
        """Forget a forward pass of an earlier iteration without a backward."""
        super().drop_pending()
        if not self._batch_losses:
            self._batch_snapshot = self._batches.open_batch()

    def drop_gradients(self) -> None:
        """Forget the micro-batches, because gradients were set to zero."""
        if self.has_gradients:
            return
        super().drop_gradients()
        self._sum.drop()
        self.num_batches, self._bad_batches = 0, []
        self._batch_losses = []

    def judge_last(self) -> None:
        """Judge the last micro-batch if backward has run on it; syncs."""
        if self._batch_losses:
            self._judge()

    def _judge(self) -> None:
        guard = self._batches.guard
        self.num_batches += 1
        params, grads = guard.params.trained()
        # The user may have set the gradients to zero past the wrapper.
        losses = self._batch_losses if grads else []
        scale = guard.scaler.read(guard.params.optimizer)
        if scale.is_unscaled:
            raise GuardConfigError(
                "optim_wrapper.guard.accumulation is 'microbatch', and "
                'loss_scaler.unscale_ was called by hand: gradients of other '
                'micro-batches still carry the scale. Leave the call out, or '
                "set accumulation='window'."
            )
        seen, reading = observe(
            grads, losses, self.facts, self._batch_snapshot, scale
        )
        is_good = seen.is_clean
        if not is_good:
            reading, weights = find_suspects(
                seen, reading, self._batch_snapshot, guard.weights()
            )
            seen = diagnose(seen, reading, grads, weights)
            is_good = starves_without(seen, guard.state)
        if is_good:
            self._batch_snapshot.commit()
            self.losses += losses
        else:
            cause = find_cause(seen, guard.state, guard.policy)
            bad = blame(
                cause,
                params,
                grads,
                weights,
                reading,
                scale.carried,
                guard.names(),
            )
            self._bad_batches.append(
                BadBatch(self.num_batches, guard.iter, seen, bad)
            )
            self._batches.num_left_out += 1
            snapshot, changes = self._batch_snapshot, reading.changes
            kept: List[TensorBackup] = []
            if fails_again(seen, cause, guard.state):
                kept = find_empty_buffers(guard, snapshot, changes)
            snapshot.restore(changes, kept)
            for param in params:
                param.grad = None
        self._sum.take(guard.params)
        self._batch_losses, self.facts = [], {}
        self._batch_snapshot = self._batches.open_batch()

    def sum_gradients(self) -> None:
        """Let ``param.grad`` hold the average over all good micro-batches.

        An optimizer and a user's own code before the step then find the
        gradients where they look for them. Collective.

        Raises:
            GuardConfigError: With several ranks, if DDP does not average
                the gradients.
        """
        self.judge_last()
        params = self._batches.guard.params
        # These gradients come from a backward pass past the wrapper's own.
        if any(param.grad is not None for param in params):
            self._judge()
        if self.num_batches == 0:
            return
        self.has_gradients = True
        num_good = self.num_batches - len(self._bad_batches)
        good, total = self._batches.reduce(
            self._sum, num_good, self.num_batches
        )
        self._num_good = good
        # MMEngine divided each loss by the whole window's length. The sum of
        # the good micro-batches becomes their average.
        factor = total / good if good else 1.0
        self._sum.give_back(params, factor)
        if good < total:
            losses = self.losses or [torch.zeros(())]
            self.losses = [loss * factor for loss in losses]
            self._left_out = self._gather(total)

    def _gather(self, total: int) -> LeftOut:
        """Return the bad micro-batches of all ranks; collective.

        Args:
            total: Number of micro-batches of the window, on all ranks.
        """
        batches: List[BadBatch] = []
        ranks: List[int] = []
        places: List[Tuple[int, int, int]] = []
        for rank, bad in enumerate(all_gather_object(self._bad_batches)):
            for batch in bad:
                batches.append(batch)
                ranks.append(rank)
                places.append((rank, batch.number, batch.iter))
        # merge() takes micro-batches for ranks: bad_ranks has their indices.
        seen = merge([batch.seen for batch in batches], batches[0].seen)
        culprits = seen.bad_ranks
        seen = replace(
            seen,
            bad_ranks=tuple(sorted(set(map(ranks.__getitem__, culprits)))),
            # MMEngine has divided each loss by the window's length.
            loss=seen.loss * self.num_batches,
        )
        return LeftOut(seen, tuple(places), total, batches[culprits[0]].bad)

    def complete(self, seen: Observation) -> Observation:
        """Add the micro-batches that were left out to an observation."""
        left_out = self._left_out
        if left_out is None:
            return seen
        if self._num_good == 0:
            return replace(left_out.seen, left_out=left_out)
        # Weights that were bad in one micro-batch are bad for the update.
        weights_are_finite = left_out.seen.weights_are_finite
        return replace(
            seen, left_out=left_out, weights_are_finite=weights_are_finite
        )
