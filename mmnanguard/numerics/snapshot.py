import math
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

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
        self._slots: Dict[nn.Module, List[_Slot]] = {}
        self._owners: Dict[nn.Module, List[Tuple[nn.Module, int]]] = {}
        self._by_key: Dict[Tuple[nn.Module, str], _Slot] = {}
        self._models: List[nn.Module] = []
        self._open: List[_Slot] = []
        self._changed: List[_Slot] = []
        self._probed: List[_Slot] = []
        self._judged: List[_Slot] = []
        self._num_windows = 0

    @torch.no_grad()
    def take(self, model: nn.Module) -> None:
        """Remember the buffers of ``model`` as they are now.

        Buffers that this window already remembers are left alone: their first
        copy is the one to go back to.
        """
        owners = self._owners.get(model, [(model, -1)])
        if any(len(owner._buffers) != number for owner, number in owners):
            self._find_slots(model)
        new = [slot for slot in self._slots[model] if not slot.is_open]
        _copy([(slot.copy, slot.tensor) for slot in new if slot.needs_copy()])
        for slot in new:
            slot.is_open = True
        self._open += new
        self._models.append(model)

    @torch.no_grad()
    def facts(self) -> Dict[str, Sequence[Tensor]]:
        """Device scalars that :meth:`find_bad` wants to read back."""
        self._changed = [slot for slot in self._open if slot.has_changed()]
        self._probed = []
        if self._num_windows < NUM_PROBED_WINDOWS:
            self._probed = [
                slot
                for slot in self._open
                if slot.tensor is not None and not slot.has_changed()
            ]
        self._judged = [
            slot for slot in self._changed + self._probed if slot.is_judged
        ]
        return {
            'buffers': _inf_norms([slot.current for slot in self._judged]),
            'baselines': _inf_norms(
                [slot.copy for slot in self._judged if slot.was_finite is None]
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
        for slot, norm in zip(self._judged, read['buffers']):
            if slot.was_finite is None:
                slot.was_finite = math.isfinite(next(baselines))
            became_bad = slot.was_finite and not math.isfinite(norm)
            if became_bad or (slot.is_born and math.isnan(norm)):
                bad.append((slot.owner, slot.key))
        return bad

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what changed since :meth:`take`, bit for bit."""
        for model in self._models:
            for owner, _ in self._owners[model]:
                for key in list(owner._buffers):
                    if (owner, key) not in self._by_key:
                        del owner._buffers[key]  # registered since
        pairs = []
        for slot in self._changed:
            slot.owner._buffers[slot.key] = slot.tensor
            if slot.has_new_shape():
                slot.tensor.data = slot.copy.clone()
            elif slot.has_new_content():
                pairs.append((slot.tensor, slot.copy))
        _copy(pairs)

    def close(self) -> None:
        """End the window; the next :meth:`take` begins a new one."""
        for slot in self._open:
            slot.is_open = False
        self._models, self._open, self._changed = [], [], []
        self._probed, self._judged = [], []
        self._num_windows += 1

    def _find_slots(self, model: nn.Module) -> None:
        """Anew whenever a module got or lost a buffer; one that was lost in
        an earlier window keeps its slot.
        """
        self._owners[model] = [
            (owner, len(owner._buffers)) for owner in model.modules()
        ]
        slots = dict.fromkeys(self._slots.get(model, ()))
        for owner, _ in self._owners[model]:
            for key in owner._buffers:
                if (owner, key) not in self._by_key:
                    self._by_key[owner, key] = _Slot(owner, key)
                slots[self._by_key[owner, key]] = None
        self._slots[model] = list(slots)


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

    def __init__(self, owner: nn.Module, key: str) -> None:
        self.owner = owner
        self.key = key
        self.is_open = False
        self._bind()

    def _bind(self) -> None:
        """Take what hangs there now, which may be None, for the original."""
        self.tensor = self.current
        self.copy: Any = None
        self.version: Optional[int] = None
        # None: not known yet.
        self.was_finite: Optional[bool] = False
        self.is_uncounted = False
        if self.tensor is not None:
            self.copy = torch.empty_like(self.tensor)
            self.was_finite = None if _can_judge(self.tensor) else False
            self.is_uncounted = isinstance(
                self.owner, _NormBase
            ) or not _can_compare(self.tensor)

    @property
    def current(self) -> Any:
        """What hangs there now; in a window, maybe no longer ``tensor``."""
        return self.owner._buffers.get(self.key)

    @property
    def is_born(self) -> bool:
        """Made in this window: it may well be a mask of -inf, but not NaN."""
        return self.tensor is None and self.current is not None

    @property
    def is_judged(self) -> bool:
        """Can it have become non-finite?"""
        return (
            (self.was_finite is not False or self.is_born)
            and self.current is not None
            and _can_judge(self.current)
        )

    def needs_copy(self) -> bool:
        if self.current is not self.tensor or self.has_new_shape():
            self._bind()  # since the last window
        if not self.has_new_content():
            return False
        self.version = self.tensor._version
        return True

    def has_changed(self) -> bool:
        return (
            self.current is not self.tensor
            or self.has_new_shape()
            or self.has_new_content()
        )

    def has_new_shape(self) -> bool:
        return self.tensor is not None and self.tensor.shape != self.copy.shape

    def has_new_content(self) -> bool:
        """By the version counter, where it can be trusted."""
        return self.tensor is not None and (
            self.is_uncounted or self.version != self.tensor._version
        )


def _can_compare(tensor: Tensor) -> bool:
    """False for the kinds that hardly any kernel knows (sparse, float8)."""
    return tensor.layout is torch.strided and not (
        tensor.is_floating_point() and tensor.dtype.itemsize < 2
    )


def _can_judge(tensor: Tensor) -> bool:
    return (
        tensor.is_floating_point()
        and tensor.numel() > 0
        and _can_compare(tensor)
    )


def _copy(pairs: List[Tuple[Tensor, Tensor]]) -> None:
    """In one kernel per dtype and device: a mixed list takes one a tensor."""
    groups: Dict[Any, List[Tuple[Tensor, Tensor]]] = {}
    for target, source in pairs:
        groups.setdefault((target.dtype, target.device), []).append(
            (target, source)
        )
    for group in groups.values():
        targets, sources = zip(*group)
        torch._foreach_copy_(targets, sources)


def _inf_norms(tensors: List[Tensor]) -> Sequence[Tensor]:
    return torch._foreach_norm(tensors, math.inf) if tensors else []
