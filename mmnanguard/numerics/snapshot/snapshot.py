import math
import warnings
from operator import attrgetter
from typing import Any, Callable, Dict, List, Mapping, Sequence, Set, Tuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..base.foreach import in_place
from ..base.norms import tensor_norms
from ..base.shards import local
from .averaged_modules import note_averages, note_changing
from .module_structure import ModuleStructure
from .tensor_backup import TensorBackup, can_compare

__all__ = ['Snapshot']

# Committed windows up to which tensors are compared to find those that are
# changed behind autograd's back, and the parameters among them. Rejected ones
# teach too little: a momentum encoder of what does not move stands still.
NUM_PROBED_WINDOWS = 3

# In C, as there may be thousands of parameters.
VERSION = attrgetter('tensor._version')


class Snapshot:
    """Copies of the buffers and parameters that a forward pass changes.

    A copy stays valid while the tensor's version counter stands still, so
    constant buffers are copied once, and a buffer that begins to change late
    is still covered. Some kernels write without counting, BatchNorm's running
    statistics above all: norm layers are copied every window, other such
    buffers are found by comparing over the first windows.

    Parameters can be gigabytes, and forward changes hardly any (momentum
    encoders, prototypes that are kept normalized). Over the first windows
    all are copied to the host and compared; from then on those that were
    changed are treated like buffers, with the frozen part of the model that
    they belong to, and of the others only the version counter is looked at.

    Nothing here syncs the device, but for the copies to the host.

    Args:
        foreign: Gives the ids of parameters that other optimizers train.
            They may commit meanwhile, so these are left alone.
    """

    def __init__(self, foreign: Callable[[], Set[int]] = set) -> None:
        self._foreign = foreign
        self._slots: Dict[nn.Module, List[TensorBackup]] = {}
        self._layouts: Dict[nn.Module, List[ModuleStructure]] = {}
        self._by_key: Dict[Tuple[nn.Module, str, str], TensorBackup] = {}
        self._models: List[nn.Module] = []
        self._open: List[TensorBackup] = []
        self._watched: List[Tuple[List[TensorBackup], List[int]]] = []
        self._quiet: Dict[
            nn.Module, Tuple[List[TensorBackup], List[TensorBackup]]
        ] = {}
        self._changed: List[TensorBackup] = []
        self._probed: List[TensorBackup] = []
        self._judged: List[TensorBackup] = []
        self._late: List[TensorBackup] = []
        self._num_commits = 0
        self._is_commit = False
        # (owner, key) of buffers found bad that were so before the window.
        self.lost: List[Tuple[nn.Module, str]] = []

    @property
    def is_open(self) -> bool:
        return bool(self._models)

    @property
    def is_probing(self) -> bool:
        return self._num_commits < NUM_PROBED_WINDOWS

    @torch.no_grad()
    def take(self, model: nn.Module, is_shared: bool = False) -> None:
        """Remember what forward may change in ``model`` as it is now.

        What this window already remembers is left alone: its first copy is
        the one to go back to.

        Args:
            model: Module.
            is_shared: Other optimizers' forward passes go through it, too.
        """
        layouts = self._layouts.get(model)
        if layouts is None or any(layout.is_outdated() for layout in layouts):
            self._find_slots(model)
        moving = self._slots[model]
        if not self.is_probing:
            if model not in self._quiet:
                self._quiet[model] = divide(moving)
            moving, quiet = self._quiet[model]
            self._watched.append((quiet, versions(quiet)))
        new = []
        for slot in moving:
            if slot.is_open:
                slot.is_shared = slot.is_shared and is_shared
                continue
            slot.is_open, slot.is_shared = True, is_shared
            new.append(slot)
        _copy(
            [
                (slot.copy, local(slot.tensor))
                for slot in new
                if slot.needs_copy(self.is_probing)
            ]
        )
        if self.is_probing:
            for slot in new:
                if slot.tensor is not None and not slot.is_uncounted:
                    slot.checksum = slot.sum_bits()
        self._open += new
        self._models.append(model)

    @torch.no_grad()
    def facts(self) -> Dict[str, Sequence[Tensor]]:
        """Device scalars that :meth:`find_bad` wants to read back."""
        self._changed = [slot for slot in self._open if slot.has_changed()]
        self._probed = [
            slot
            for slot in self._open
            if slot.checksum is not None and not slot.has_changed()
        ]
        self._late = [
            slot
            for quiet, before in self._watched
            if versions(quiet) != before
            for slot, version in zip(quiet, before)
            if slot.tensor._version != version
        ]
        self._judged = [
            slot for slot in self._changed + self._probed if slot.is_judged
        ]
        return {
            'buffers': tensor_norms(
                [local(slot.current) for slot in self._judged], 2.0
            ),
            'baselines': tensor_norms(
                [
                    slot.copy
                    for slot in self._judged
                    if slot.was_finite is None
                ],
                math.inf,
            ),
            'moved': [
                torch.ne(slot.sum_bits(), slot.checksum)
                for slot in self._probed
            ],
        }

    def find_bad(
        self, read: Mapping[str, Sequence[float]]
    ) -> List[Tuple[nn.Module, str]]:
        """What became non-finite in this window, as (owner, key).

        A buffer that was non-finite before (a mask of -inf) is not judged.

        Args:
            read: The host's reading of :meth:`facts`.
        """
        for slot, moved in zip(self._probed, read['moved']):
            if moved:
                slot.is_uncounted = True
                self._changed.append(slot)
        if note_changing(self._changed + self._late, self._slots):
            self._quiet = {}
        baselines = iter(read['baselines'])
        bad = []
        for slot, norm in zip(self._judged, read['buffers']):
            if slot.was_finite is None:
                slot.was_finite = math.isfinite(next(baselines))
            became_bad = slot.was_finite and not math.isfinite(norm)
            is_bad = became_bad or (slot.is_born and math.isnan(norm))
            if not (is_bad and slot.is_changing):
                continue
            # Cold from here on.
            if slot.is_finite():  # and large
                continue
            if slot.went_bad_before():
                self.lost.append((slot.owner, slot.key))
            elif slot.is_mask():
                slot.was_finite = False
            else:
                bad.append((slot.owner, slot.key))
        self._is_commit = True
        return bad

    @torch.no_grad()
    def restore(self, others_committed: bool = False) -> None:
        """Put back what changed since :meth:`take`, bit for bit.

        Args:
            others_committed: Another optimizer has stepped since: what is
                shared stays as it is, unless it became non-finite.
        """
        self._is_commit = False
        for model in self._models:
            for layout in self._layouts[model]:
                layout.restore()
        pairs = []
        for slot in self._changed:
            if others_committed and slot.is_shared and not slot.is_bad():
                continue
            getattr(slot.owner, slot.registry)[slot.key] = slot.tensor
            if slot.has_new_shape():
                slot.tensor.data = slot.copy.to(slot.tensor.device, copy=True)
            elif slot.has_new_content():
                # Counted exactly if the change was: a graph that another
                # optimizer still wants to run backward through is not
                # broken by putting back what it never counted.
                target = local(slot.tensor)
                if slot.is_uncounted:
                    target = target.data
                pairs.append((target, slot.copy))
        _copy(pairs)
        for slot in self._late:
            warnings.warn(
                f"forward changed the parameter '{slot.key}' of a "
                f'{type(slot.owner).__name__}, which it had left alone in '
                f'the first {NUM_PROBED_WINDOWS} commits: this one change '
                'stays although the update was rejected. From now on such '
                'changes are put back.',
                RuntimeWarning,
                stacklevel=2,
            )

    def close(self) -> None:
        """End the window; the next :meth:`take` begins a new one."""
        for slot in self._open:
            slot.is_open = False
            slot.checksum = None
        self._num_commits += self._is_commit
        self._is_commit = False
        if self._num_commits == NUM_PROBED_WINDOWS:
            for slot in self._by_key.values():
                if not slot.is_changing:
                    slot.drop_copy()  # the host's
        self.lost = []
        self._models, self._open, self._watched = [], [], []
        self._changed, self._probed, self._judged = [], [], []
        self._late = []

    def _find_slots(self, model: nn.Module) -> None:
        """Anew whenever a module got or lost a part; one that was lost in
        an earlier window keeps its slot.
        """
        self._quiet.pop(model, None)
        owners = list(model.modules())
        self._layouts[model] = [ModuleStructure(owner) for owner in owners]
        foreign = self._foreign()
        slots = dict.fromkeys(
            slot for slot in self._slots.get(model, ()) if slot.owner in owners
        )
        for owner in owners:
            places = [(owner, '_buffers', key) for key in owner._buffers]
            places += [
                (owner, '_parameters', key)
                for key, param in owner._parameters.items()
                if param is not None
                and can_compare(param)
                and not is_lazy(param)
                and id(param) not in foreign
            ]
            for place in places:
                if place not in self._by_key:
                    self._by_key[place] = TensorBackup(*place)
                slots[self._by_key[place]] = None
        self._slots[model] = list(slots)
        note_averages(slots, owners)


def divide(
    slots: List[TensorBackup],
) -> Tuple[List[TensorBackup], List[TensorBackup]]:
    """Those that change, and those of which the counter is looked at."""
    moving = [slot for slot in slots if slot.is_changing]
    return moving, [slot for slot in slots if not slot.is_changing]


def versions(slots: List[TensorBackup]) -> List[int]:
    return list(map(VERSION, slots))


def _copy(pairs: List[Tuple[Tensor, Tensor]]) -> None:
    """In one kernel per dtype and device: a mixed list takes one a tensor."""
    groups: Dict[Any, List[Tuple[Tensor, Tensor]]] = {}
    for target, source in pairs:
        key = (target.dtype, target.device, source.device)
        groups.setdefault(key, []).append((target, source))
    for group in groups.values():
        targets, sources = zip(*group)
        in_place('copy', targets, sources)
