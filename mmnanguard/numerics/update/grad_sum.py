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

    As backward itself would, and in the same order, so that the sum has the
    same bits. Takes the memory of one more gradient of each parameter.
    """

    def __init__(self) -> None:
        self._sums: Dict[int, Tensor] = {}

    @torch.no_grad()
    def take(self, params: Iterable[Tensor]) -> None:
        """Add each ``param.grad``, and leave None there; no sync."""
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
        """Let each ``param.grad`` be the sum times ``factor``, and begin a
        new one.
        """
        if factor != 1.0 and self._sums:
            in_place('mul', list(self._sums.values()), factor)
        for param in params:
            param.grad = self._sums.get(id(param))
        self.drop()

    def drop(self) -> None:
        self._sums = {}

    @torch.no_grad()
    def reduce(
        self, params: Sequence[Tensor], counts: Sequence[int]
    ) -> Tuple[int, ...]:
        """Average over all ranks what DDP would have, in one all-reduce;
        collective. A gradient that no rank has stays None.

        Args:
            params: In the same order on all ranks.
            counts: To be summed along with them.

        Returns:
            The sums of ``counts``.

        Raises:
            GuardConfigError: If a gradient is sparse.
            NanGuardError: If another rank does not answer.
        """
        if any(grad.is_sparse for grad in self._sums.values()):
            raise GuardConfigError(
                "optim_wrapper.guard.accumulation is 'microbatch', and a "
                'gradient is sparse: several ranks then cannot add theirs '
                "up. Set sparse=False in the embedding, or 'window'."
            )
        has_grad = [id(param) in self._sums for param in params]
        flat = torch.cat(
            [
                self._sums[id(param)].reshape(-1)
                if has
                else param.new_zeros(param.numel())
                for param, has in zip(params, has_grad)
            ]
            + [params[0].new_tensor([*has_grad, *counts])]
        )
        num_extra = len(has_grad) + len(counts)
        # As DDP does: before they add up, which might overflow.
        flat[:-num_extra].mul_(1 / dist.get_world_size())
        for param in params:  # for the memory
            self._sums.pop(id(param), None)
        add_up(flat)
        extra = [int(number) for number in flat[-num_extra:].tolist()]
        parts = flat[:-num_extra].split([param.numel() for param in params])
        for param, part, has in zip(params, parts, extra):
            if has:
                self._sums[id(param)] = part.view_as(param).to(param.dtype)
        return tuple(extra[len(has_grad) :])


def find_ddp(model: nn.Module) -> List[DistributedDataParallel]:
    """The parts of a model whose gradients DDP averages.

    Raises:
        GuardConfigError: If they are not averaged over all ranks.
    """
    found = [
        module
        for module in model.modules()
        if isinstance(module, DistributedDataParallel)
    ]
    for ddp in found:
        if dist.get_world_size(ddp.process_group) != dist.get_world_size():
            raise GuardConfigError(
                "optim_wrapper.guard.accumulation='microbatch' averages over "
                f'all {dist.get_world_size()} ranks, and this model over '
                f'{dist.get_world_size(ddp.process_group)} of them: set '
                "accumulation='window'."
            )
    return found


def reduced_params(ddps: Iterable[DistributedDataParallel]) -> List[Tensor]:
    """Those that DDP averages, by the names that it goes by: of the module
    itself, with a dot in front.
    """
    return list(
        dict.fromkeys(
            param
            for ddp in ddps
            for owner, module in ddp.module.named_modules()
            for name, param in module.named_parameters(recurse=False)
            if param.requires_grad
            and f'{owner}.{name}' not in ddp.parameters_to_ignore
        )
    )
