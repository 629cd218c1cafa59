import math
from typing import Dict, List, Mapping, Optional, Sequence, Tuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ['Snapshot']

# Windows over which buffers are compared to find those that are changed
# behind autograd's back.
NUM_PROBED_WINDOWS = 3


class Snapshot:
    """Copies of the buffers that a forward pass changes.

    A copy stays valid while the tensor's version counter stands still, so
    constant buffers are copied once, and a buffer that begins to change late
    is still covered. Some kernels write without counting, BatchNorm's running
    statistics above all: norm layers are copied every window, other such
    buffers are found by comparing over the first windows.

    Nothing here syncs the device.
    """

    def __init__(self) -> None:
        self._slots: Dict[int, List[_Slot]] = {}
        self._by_key: Dict[Tuple[int, str], _Slot] = {}
        self._open: List[_Slot] = []
        self._changed: List[_Slot] = []
        self._probed: List[_Slot] = []
        self._num_windows = 0

    @torch.no_grad()
    def take(self, model: nn.Module) -> None:
        """Remember the buffers of ``model`` as they are now.

        Buffers that this window already remembers are left alone: their first
        copy is the one to go back to.
        """
        if id(model) not in self._slots:
            self._slots[id(model)] = self._find_slots(model)
        stale = []
        for slot in self._slots[id(model)]:
            if slot.is_open:
                continue
            slot.is_open = True
            self._open.append(slot)
            if slot.needs_copy():
                stale.append(slot)
        if stale:
            torch._foreach_copy_(
                [slot.copy for slot in stale], [slot.tensor for slot in stale]
            )

    @torch.no_grad()
    def facts(self) -> Dict[str, Sequence[Tensor]]:
        """Device scalars that :meth:`find_bad` wants to read back."""
        self._changed = [slot for slot in self._open if slot.has_changed()]
        self._probed = []
        if self._num_windows < NUM_PROBED_WINDOWS:
            seen = set(map(id, self._changed))
            self._probed = [
                slot for slot in self._open if id(slot) not in seen
            ]
        judged = [slot for slot in self._changed if slot.is_judged]
        return {
            'buffers': _inf_norms([slot.current for slot in judged]),
            'baselines': _inf_norms(
                [slot.copy for slot in judged if slot.was_finite is None]
            ),
            'moved': [
                torch.ne(slot.current, slot.copy).any()
                for slot in self._probed
            ],
        }

    def find_bad(
        self, read: Mapping[str, Sequence[float]]
    ) -> List[Tuple[nn.Module, str]]:
        """Buffers that became non-finite in this window, as (owner, key).

        One that was non-finite before (a mask of -inf) is not judged.

        Args:
            read: The host's reading of :meth:`facts`.
        """
        for slot, moved in zip(self._probed, read['moved']):
            if moved:
                slot.is_uncounted = True
                self._changed.append(slot)
        baselines = iter(read['baselines'])
        bad = []
        judged = [slot for slot in self._changed if slot.is_judged]
        for slot, norm in zip(judged, read['buffers']):
            if slot.was_finite is None:
                slot.was_finite = math.isfinite(next(baselines))
            if slot.was_finite and not math.isfinite(norm):
                bad.append((slot.owner, slot.key))
        return bad

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what changed since :meth:`take`, bit for bit."""
        for slot in self._changed:
            slot.owner._buffers[slot.key] = slot.tensor
        if self._changed:
            torch._foreach_copy_(
                [slot.tensor for slot in self._changed],
                [slot.copy for slot in self._changed],
            )

    def close(self) -> None:
        """End the window; the next :meth:`take` begins a new one."""
        for slot in self._open:
            slot.is_open = False
        self._open, self._changed, self._probed = [], [], []
        self._num_windows += 1

    def _find_slots(self, model: nn.Module) -> List['_Slot']:
        slots = []
        for owner in model.modules():
            for key, tensor in owner._buffers.items():
                if tensor is not None:
                    slots.append(
                        self._by_key.setdefault(
                            (id(owner), key), _Slot(owner, key, tensor)
                        )
                    )
        return slots


class _Slot:
    """One buffer: where it hangs, its copy, and when the copy was made."""

    __slots__ = (
        'copy',
        'is_open',
        'is_uncounted',
        'key',
        'owner',
        'tensor',
        'version',
        'was_finite',
    )

    def __init__(self, owner: nn.Module, key: str, tensor: Tensor) -> None:
        self.owner = owner
        self.key = key
        self.is_uncounted = isinstance(owner, _NormBase)
        self.is_open = False
        self._bind(tensor)

    def _bind(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.copy = torch.empty_like(tensor)
        self.version: Optional[int] = None
        self.was_finite: Optional[bool] = None

    @property
    def current(self) -> Tensor:
        """What hangs there now; in a window, maybe no longer ``tensor``."""
        return cast(Tensor, self.owner._buffers[self.key])

    @property
    def is_judged(self) -> bool:
        """Can it be non-finite? (A forward pass may even remove it.)"""
        return (
            isinstance(self.current, Tensor)
            and self.current.is_floating_point()
            and self.current.numel() > 0
        )

    def needs_copy(self) -> bool:
        if self.current is not self.tensor:  # re-bound since the last window
            self._bind(self.current)
        if self.is_uncounted or self.version != self.tensor._version:
            self.version = self.tensor._version
            return True
        return False

    def has_changed(self) -> bool:
        return (
            self.is_uncounted
            or self.current is not self.tensor
            or self.version != self.tensor._version
        )


def _inf_norms(tensors: List[Tensor]) -> Sequence[Tensor]:
    return torch._foreach_norm(tensors, math.inf) if tensors else []
