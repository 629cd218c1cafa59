"""The sum of gradients over micro-batches."""

from typing import Dict, Iterable, List, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mmnanguard.core import GuardConfigError

from ..base.foreach import in_place
from .agree import add_up

__all__ = ['GradSum', 'find_ddp', 'reduced_params']


class GradSum:
    """Adds up gradients of micro-batches outside of ``param.grad``.

    It adds in the order in which ``param.grad`` would accumulate, so the sum
    has the same bits. It takes the memory of one more gradient of each
    parameter.
    """

    def __init__(self) -> None:
        self._sums: Dict[int, Tensor] = {}

    @torch.no_grad()
    def take(self, params: Iterable[Tensor]) -> None:
        """Add each ``param.grad`` and set it to None; no sync."""
        sums, grads = [], []
        for param in params:
            grad, param.grad = param.grad, None
            if grad is None:
                continue
            if id(param) in self._sums:
                sums.append(self._sums[id(param)])
                grads.append(grad)
            else:
                self._sums[id(param)] = grad
        if sums:
            in_place('add', sums, grads)

    @torch.no_grad()
    def give_back(self, params: Iterable[Tensor], factor: float) -> None:
        """Set each ``param.grad`` to the sum times ``factor``.

        The next sum begins at zero.
        """
        if factor != 1.0 and self._sums:
            in_place('mul', list(self._sums.values()), factor)
        for param in params:
            param.grad = self._sums.get(id(param))
        self.drop()

    def drop(self) -> None:
        """Forget the sum."""
        self._sums = {}

    @torch.no_grad()
    def reduce(
        self, params: Sequence[Tensor], counts: Sequence[int]
    ) -> Tuple[int, ...]:
        """Average gradients over all ranks in one all-reduce. Collective.

        A gradient that no rank has stays None.

        Args:
            params: The parameters that DDP reduces, in the same order on all
                ranks.
            counts: Numbers to be summed over ranks.

        Returns:
            The sums of ``counts``.

        Raises:
            GuardConfigError: If a gradient is sparse.
            NanGuardError: If another rank does not answer.
        """
        # An all-reduce takes strided tensors only.
        if any(grad.is_sparse for grad in self._sums.values()):
            raise GuardConfigError(
                "optim_wrapper.guard.accumulation is 'microbatch', and a "
                'gradient is sparse: several ranks then cannot add theirs '
                "up. Set sparse=False in the embedding, or 'window'."
            )
        has_grad, parts = [], []
        for param in params:
            grad = self._sums.get(id(param))
            has_grad.append(grad is not None)
            # Ranks may lack different gradients and must still add up alike.
            if grad is None:
                grad = param.new_zeros(param.numel())
            parts.append(grad.reshape(-1))
        # The flags and counts travel with the gradients, in one all-reduce.
        flat = torch.cat([*parts, params[0].new_tensor([*has_grad, *counts])])
        num_extra = len(has_grad) + len(counts)
        # DDP divides before it adds, too: a sum might overflow.
        flat[:-num_extra].mul_(1 / dist.get_world_size())
        for param in params:  # frees memory before the all-reduce
            self._sums.pop(id(param), None)
        add_up(flat)
        extra = list(map(int, flat[-num_extra:].tolist()))
        averages = flat[:-num_extra].split(list(map(Tensor.numel, params)))
        for param, part, num_ranks in zip(params, averages, extra):
            # The optimizer must skip a parameter without a gradient.
            if num_ranks:
                self._sums[id(param)] = part.view_as(param).to(param.dtype)
        return tuple(extra[len(has_grad) :])


def find_ddp(model: nn.Module) -> List[DistributedDataParallel]:
    """Return the parts of a model whose gradients DDP averages.

    Raises:
        GuardConfigError: If they are not averaged over all ranks.
    """
    ddps = []
    for ddp in model.modules():
        if not isinstance(ddp, DistributedDataParallel):
            continue
        ddps.append(ddp)
        if dist.get_world_size(ddp.process_group) != dist.get_world_size():
            raise GuardConfigError(
                "optim_wrapper.guard.accumulation='microbatch' averages over "
                f'all {dist.get_world_size()} ranks, and this model over '
                f'{dist.get_world_size(ddp.process_group)} of them: set '
                "accumulation='window'."
            )
    return ddps


def reduced_params(ddps: Iterable[DistributedDataParallel]) -> List[Tensor]:
    """Return the parameters whose gradients DDP averages."""
    params: Dict[Tensor, None] = {}  # an ordered set
    for ddp in ddps:
        for owner, module in ddp.module.named_modules():
            for name, param in module.named_parameters(recurse=False):
                # DDP also puts a dot before the name if the owner has none.
                is_ignored = f'{owner}.{name}' in ddp.parameters_to_ignore
                if param.requires_grad and not is_ignored:
                    params[param] = None
    return list(params)
