"""The copies of one window, and the changes that it made.

A window calls ``take`` before each forward pass. At its end ``compare`` gives
device scalars, ``learn`` gets their values and returns the ``Changes``, and
``restore`` or ``commit`` ends the window. A new window has a new snapshot; the
``ChangeTracker`` stays.
"""

import math
import warnings
from operator import attrgetter
from typing import (
    Collection,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

import torch
from torch import Tensor, nn

from ..base.comm_hooks import HookState, copy_hook_states
from ..base.norms import tensor_norms
from .change_tracker import ChangeTracker, ModuleStructure, TrackedModel
from .tensor_backup import TensorBackup
from .uncounted import writes_uncounted

__all__ = ['Changes', 'Comparison', 'Snapshot']

# This runs in C, which matters for thousands of parameters.
VERSION = attrgetter('tensor._version')

Owned = Tuple[nn.Module, str]


class Comparison(NamedTuple):
    """The state of the tensors at the end of a window, before a host read.

    Attributes:
        changed: The backups of tensors that have changed.
        probed: The backups of tensors that look constant but may have been
            written to uncounted; their checksums tell.
        late: The backups of quiet parameters that changed after all.
        judged: The backups of tensors that can have become non-finite.
        scalars: Device scalars that ``Snapshot.learn`` needs on the host.
    """

    changed: List[TensorBackup]
    probed: List[TensorBackup]
    late: List[TensorBackup]
    judged: List[TensorBackup]
    scalars: Dict[str, Sequence[Tensor]]


class Changes(NamedTuple):
    """The changes that a window made.

    Attributes:
        backups: The backups of the tensors that can be restored.
        late: The backups of changed parameters that were not copied.
        bad: (owner, key) of the tensors that became non-finite.
        lost: (owner, key) of the non-finite tensors that were non-finite
            before the window.
    """

    backups: Sequence[TensorBackup] = ()
    late: Sequence[TensorBackup] = ()
    bad: Sequence[Owned] = ()
    lost: Sequence[Owned] = ()


class Snapshot:
    """Copies of the buffers and parameters that forward passes change.

    A copy stays valid while the tensor's version counter stays constant, so
    constant buffers are copied once, and a buffer that begins to change late
    is still covered. Some kernels do not count what they write, above all
    BatchNorm's running statistics: buffers of norm layers are copied in every
    window, and other such buffers are found by comparing over the first
    windows.

    Nothing here syncs the device, except the copies to the host.

    Args:
        tracker: The knowledge of earlier windows.
    """

    def __init__(self, tracker: Optional[ChangeTracker] = None) -> None:
        self.tracker = tracker or ChangeTracker()
        self._models: Dict[TrackedModel, None] = {}  # an ordered set
        # Each backup, and whether it was only taken with the shared model.
        self._taken: Dict[TensorBackup, bool] = {}
        self._checksums: Dict[TensorBackup, Tensor] = {}
        self._versions: List[Tuple[List[TensorBackup], List[int]]] = []
        self._structures: List[List[ModuleStructure]] = []
        self._num_steps = 0
        # The states of communication hooks, and whether they are shared.
        self._hook_states: Dict[nn.Module, Tuple[List[HookState], bool]] = {}

    @property
    def is_open(self) -> bool:
        """Whether a model was taken."""
        return bool(self._models)

    def take(self, model: nn.Module) -> None:
        """Copy the tensors that a forward pass of ``model`` may change.

        The first copy of a window is the state to return to, so tensors that
        this window has copied are left alone.
        """
        others = self.tracker.others
        if others.model is None:
            self._take(model)
            return
        if not self._models:
            self._num_steps = others.count_steps()
        self._take(model)
        self._take(others.model, is_shared=True)

    @torch.no_grad()
    def _take(self, model: nn.Module, is_shared: bool = False) -> None:
        tracked = self.tracker.find(model)
        self._models[tracked] = None
        # They keep the modules alive for the length of the window.
        self._structures.append(tracked.structures)
        # Quiet parameters can be gigabytes: only their counters are read.
        if tracked.quiet:
            versions = list(map(VERSION, tracked.quiet))
            self._versions.append((tracked.quiet, versions))
        new = [b for b in tracked.moving if b not in self._taken]
        if is_shared:
            self._taken.update(dict.fromkeys(new, True))
        else:
            self._taken.update(dict.fromkeys(tracked.moving, False))
        for module in tracked.hooked:
            if module not in self._hook_states:
                states = copy_hook_states([module]), is_shared
                self._hook_states[module] = states
        is_probing = self.tracker.is_probing
        pairs = []
        for backup in new:
            if backup.prepare_copy(is_probing) and backup.copy is not None:
                pairs.append((backup.copy, backup.values))
        _copy(pairs)
        # Checksums find the tensors whose counter cannot be trusted.
        if is_probing:
            for backup in new:
                if backup.is_compared:
                    self._checksums[backup] = backup.sum_bits()

    @torch.no_grad()
    def compare(self) -> Comparison:
        """Compare the tensors with their copies; no sync."""
        changed, probed = [], []
        for backup in self._taken:
            if backup.has_changed():
                changed.append(backup)
            elif backup in self._checksums:
                probed.append(backup)
        judged, currents, baselines = [], [], []
        for backup in changed + probed:
            values = backup.current_values if backup.is_judged else None
            if values is None:
                continue
            # A baseline is needed only until was_finite is known.
            if backup.was_finite is None:
                baseline = backup.baseline
                if baseline is None:
                    continue
                baselines.append(baseline)
            judged.append(backup)
            currents.append(values)
        moved = []
        for backup in probed:
            moved.append(torch.ne(backup.sum_bits(), self._checksums[backup]))
        scalars: Dict[str, Sequence[Tensor]] = {
            'buffers': tensor_norms(currents, 2.0),
            # Only Inf and NaN matter here, and a mask may hold large numbers.
            'baselines': tensor_norms(baselines, math.inf),
            'moved': moved,
        }
        return Comparison(changed, probed, self._late(), judged, scalars)

    def _late(self) -> List[TensorBackup]:
        """Return the quiet backups whose version counters have moved."""
        late = []
        for quiet, before in self._versions:
            # One comparison of lists is far faster than one per parameter.
            if list(map(VERSION, quiet)) == before:
                continue
            for backup, version in zip(quiet, before):
                if VERSION(backup) != version:
                    late.append(backup)
        return late

    def learn(
        self, comparison: Comparison, read: Mapping[str, Sequence[float]]
    ) -> Changes:
        """Note what a comparison shows, and return the window's changes.

        A buffer that was non-finite before training (a mask with -inf) is
        not judged.

        Args:
            comparison: The result of :meth:`compare`.
            read: The values of its scalars on the host.
        """
        backups = list(comparison.changed)
        for backup, has_moved in zip(comparison.probed, read['moved']):
            # Its bits have changed, and its counter has not.
            if has_moved:
                backup.is_uncounted = True
                backups.append(backup)
        candidates = backups + comparison.late
        newly_found = [b for b in candidates if not b.is_changing]
        if newly_found:
            self.tracker.note_changing(newly_found)
        baselines = iter(read['baselines'])
        bad: List[Owned] = []
        lost: List[Owned] = []
        for backup, norm in zip(comparison.judged, read['buffers']):
            if backup.was_finite is None:
                backup.was_finite = math.isfinite(next(baselines))
            if math.isfinite(norm):
                continue
            if backup.tensor in self.tracker.masks.had_nan():
                backup.was_finite = False
            became_bad = backup.was_finite or (
                backup.is_born and math.isnan(norm)
            )
            if not (became_bad and backup.is_changing) or backup.is_finite():
                continue  # finite elements can have a norm of inf
            if backup.went_bad_before():
                lost.append((backup.owner, backup.key))
            elif backup.is_mask():
                backup.was_finite = False
            else:
                bad.append((backup.owner, backup.key))
        return Changes(backups, comparison.late, bad, lost)

    def find_lost(self, changes: Changes) -> List[Owned]:
        """Return the constant buffers that have gone bad; syncs the device.

        The buffers that this window has changed are judged by :meth:`learn`.

        Args:
            changes: The changes of this window.
        """
        changed = set(changes.backups)
        lost = []
        for backup in self._taken:
            if backup.is_param or backup in changed:
                continue
            if backup.went_bad_unseen():
                lost.append((backup.owner, backup.key))
        return lost

    def find_empty(self, changes: Changes) -> List[TensorBackup]:
        """Return the buffers that were 0 throughout and that forward filled.

        With each of them come the other buffers that forward changed in its
        module, because a queue and its pointer belong together. Norm layers
        and modules with a buffer that became non-finite are left out. Syncs
        the device.

        Args:
            changes: The changes of this window.
        """
        by_owner: Dict[nn.Module, List[TensorBackup]] = {}
        for backup in changes.backups:
            if not (backup.is_param or writes_uncounted(backup.owner)):
                by_owner.setdefault(backup.owner, []).append(backup)
        empty: List[TensorBackup] = []
        for owner, backups in by_owner.items():
            if not all(backup.is_finite() for backup in backups):
                continue
            was_empty = owner in self.tracker.filled
            if was_empty or any(backup.was_filled() for backup in backups):
                empty += backups
        return empty

    @torch.no_grad()
    def restore(
        self, changes: Changes, kept: Collection[TensorBackup] = ()
    ) -> None:
        """Undo the changes of this window, bit for bit.

        If another optimizer has committed meanwhile, tensors of the shared
        model stay as they are, unless they became non-finite.

        Args:
            changes: The changes of this window.
            kept: The backups of tensors that stay as forward left them.
        """
        others = self.tracker.others
        others_committed = others.model is not None and (
            others.count_steps() != self._num_steps
        )
        # Structures first: the tensors go back into modules that exist.
        for tracked in self._models:
            tracked.restore_structure()
        for states, is_shared in self._hook_states.values():
            if not (others_committed and is_shared):
                for state in states:
                    state.restore()
        pairs = []
        for backup in changes.backups:
            if backup in kept:
                continue
            # The old content would undo the other optimizer's commit.
            is_kept = others_committed and self._taken[backup]
            if is_kept and not backup.is_bad():
                continue
            if backup.put_back() and backup.copy is not None:
                pairs.append((backup.target, backup.copy))
        _copy(pairs)
        for backup in changes.late:
            future = 'From now on such changes are put back.'
            if backup.is_lost:
                future = 'It cannot be copied, so such changes always stay.'
            warnings.warn(
                f"forward changed the parameter '{backup.key}' of a "
                f'{type(backup.owner).__name__}, of which there is no copy '
                'because forward had left it alone: this one change stays '
                f'although the update was rejected. {future}',
                RuntimeWarning,
                stacklevel=2,
            )

    def commit(self) -> None:
        """Keep the changes of this window."""
        self.tracker.count_commit()


def _copy(pairs: Sequence[Tuple[Tensor, Tensor]]) -> None:
    """Copy each source to its target, with one kernel per type and device.

    PyTorch copies a list of several types with one kernel per tensor.
    """
    groups: Dict[object, List[Tuple[Tensor, Tensor]]] = {}
    for target, source in pairs:
        key = (target.dtype, target.device, source.device)
        groups.setdefault(key, []).append((target, source))
    for group in groups.values():
        targets, sources = zip(*group)
        torch._foreach_copy_(targets, sources)
