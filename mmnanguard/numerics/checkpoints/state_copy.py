"""A copy of the trained state on the host, which can be restored."""

from typing import Collection, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .host_tensor import HostTensor, keep_tensor
from .optimizer_copy import OptimizerCopy

__all__ = ['StateCopy', 'StateMismatchError']

# The module that holds a buffer, and the buffer's name in the module.
Place = Tuple[nn.Module, str]


class StateMismatchError(ValueError):
    """A kept state that does not fit the present model."""


class StateCopy:
    """A copy of weights, buffers and whole optimizers on the host.

    Of a sharded tensor only the part of this rank is copied.

    Args:
        tensors: The copies of weights and buffers by name; None for a buffer
            that was None.
        optimizers: The copies of the optimizers by name.
        left_out: The names of the tensors that cannot be copied.
    """

    def __init__(
        self,
        tensors: Mapping[str, Optional[HostTensor]],
        optimizers: Mapping[str, OptimizerCopy],
        left_out: Sequence[str] = (),
    ) -> None:
        self.left_out = left_out
        self._tensors = tensors
        self._optimizers = optimizers

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, Optional[Tensor]],
        optimizers: Mapping[str, Optimizer],
        scheduled: Optional[Mapping[str, Collection[str]]] = None,
    ) -> 'StateCopy':
        """Copy the present state; no sync.

        Args:
            tensors: The weights and buffers by name; None for a buffer that
                is None.
            optimizers: The optimizers by name.
            scheduled: The keys of ``param_groups`` that schedulers own, by
                the name of the optimizer; see :class:`OptimizerCopy`.
        """
        copies: Dict[str, Optional[HostTensor]] = {}
        left_out: List[str] = []
        for name, tensor in tensors.items():
            if tensor is None:
                copies[name] = None
                continue
            copy = keep_tensor(tensor)
            if copy is None:
                left_out.append(name)
            else:
                copies[name] = copy
        kept: Dict[str, OptimizerCopy] = {}
        for name, optimizer in optimizers.items():
            owned = (scheduled or {}).get(name, ())
            kept[name] = OptimizerCopy(optimizer, owned)
        return cls(copies, kept, left_out)

    def of_names(self, names: Collection[str]) -> 'StateCopy':
        """Return the copy of some weights and buffers, which share memory.

        Raises:
            StateMismatchError: If there is no copy of one of them.
        """
        missing = [name for name in names if name not in self._tensors]
        if missing:
            raise StateMismatchError(f"'{missing[0]}' was not copied")
        return StateCopy({name: self._tensors[name] for name in names}, {})

    def check(
        self,
        tensors: Mapping[str, Optional[Tensor]],
        optimizers: Mapping[str, Optimizer],
    ) -> None:
        """Check that the copy fits the present state, which is only read.

        Raises:
            StateMismatchError: If a tensor or optimizer does not exist any
                more, or a parameter has another shape or type.
        """
        problems: List[str] = []
        for name in [*self._tensors, *self._optimizers]:
            if name not in tensors and name not in optimizers:
                problems.append(f"'{name}' is gone")
        for name, copy in self._tensors.items():
            now = tensors.get(name)
            # A buffer may grow, or be None at times.
            is_param = isinstance(now, nn.Parameter)
            if is_param and copy is not None and not copy.fits(now):
                problems.append(f"'{name}' had another shape")
        if problems:
            raise StateMismatchError('; '.join(problems[:5]))

    @torch.no_grad()
    def restore(
        self,
        tensors: Mapping[str, Optional[Tensor]],
        optimizers: Mapping[str, Optimizer],
        places: Optional[Mapping[str, Place]] = None,
    ) -> None:
        """Write the copy into the present state, in place where possible.

        Nothing is written if the copy does not fit.

        Args:
            tensors: The present weights and buffers by name.
            optimizers: The present optimizers by name.
            places: The places of buffers by name, for buffers that were None
                then or are None now.

        Raises:
            StateMismatchError: See :meth:`check`.
        """
        self.check(tensors, optimizers)
        self.restore_tensors(tensors, places)
        for name, kept in self._optimizers.items():
            kept.restore(optimizers[name])

    @torch.no_grad()
    def restore_tensors(
        self,
        tensors: Mapping[str, Optional[Tensor]],
        places: Optional[Mapping[str, Place]] = None,
    ) -> None:
        """Write the weights and buffers alone, unchecked; see restore()."""
        for name, copy in self._tensors.items():
            now = tensors[name]
            if copy is None or now is None:
                new = None if copy is None else copy.restore(None)
                if places is not None and name in places:
                    owner, key = places[name]
                    owner._buffers[key] = new
            elif copy.fits(now):
                copy.restore(now)
            else:
                # Through .data, because others may hold the tensor.
                now.data = copy.restore(None)
