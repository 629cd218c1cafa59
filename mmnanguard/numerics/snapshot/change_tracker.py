"""The knowledge about models that is kept from window to window."""

import math
import weakref
from dataclasses import dataclass
from typing import (
    Callable,
    Dict,
    Iterable,
    List,
    MutableSet,
    Optional,
    Sequence,
    Set,
    Tuple,
)
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakIdKeyDictionary

from ..base.comm_hooks import have_comm_hooks
from ..base.host_read import read_once
from ..base.norms import tensor_norms
from ..base.tensor_kinds import real_values
from .averaged_modules import note_averages, note_changing
from .tensor_backup import TensorBackup

__all__ = ['ChangeTracker', 'KnownMasks', 'OtherOptimizers', 'TrackedModel']

# The backups of a module's tensors, by registry and name.
Backups = Dict[Tuple[str, str], TensorBackup]
# Number of committed windows in which tensors are compared, to find the
# parameters that forward changes, and the buffers that change without being
# counted by their version counters. Rejected windows teach too little: a
# momentum encoder of weights that do not move stays constant.
NUM_PROBED_WINDOWS = 3


def ignore(*_: object) -> None:
    """Do nothing."""


@dataclass
class OtherOptimizers:
    """The optimizers of a run beside the present one.

    Attributes:
        find_params: Returns the ids of the parameters that they train. They
            may commit at any time, so these parameters are left alone.
        model: A model that their forward passes and the present optimizer's
            share, such as a whole GAN; None if there is none.
        count_steps: Returns the number of commits of all optimizers so far.
        report_left_alone: Receives the names of tensors that cannot be
            copied, and of tensors that can be but whose numbers cannot be
            read.
    """

    find_params: Callable[[], Set[int]] = set
    model: Optional[nn.Module] = None
    count_steps: Callable[[], int] = int
    report_left_alone: Callable[[List[str], List[str]], None] = ignore


class ModuleStructure:
    """The names of a module's buffers and parameters, and its children.

    Args:
        owner: The module.
    """

    __slots__ = ('buffers', 'children', 'lazy', 'owner', 'params')

    def __init__(self, owner: nn.Module) -> None:
        self.owner = owner
        self.buffers = tuple(owner._buffers)
        self.params = tuple(owner._parameters)
        self.children = list(owner._modules.items())
        # Tensors without values, which a first forward pass gives them.
        self.lazy = lazy_tensors(owner)

    def is_outdated(self) -> bool:
        """Whether a name was added or removed, or a child was replaced.

        Every window asks this of every module, so names are only counted.
        """
        owner = self.owner
        return (
            len(owner._buffers) != len(self.buffers)
            or len(owner._parameters) != len(self.params)
            or (
                bool(owner._modules or self.children)
                and list(owner._modules.items()) != self.children
            )
            or (bool(self.lazy) and lazy_tensors(owner) != self.lazy)
        )

    def restore(self) -> None:
        """Remove the names that were added, and put back the children."""
        for registry, names in (
            (self.owner._buffers, self.buffers),
            (self.owner._parameters, self.params),
        ):
            for key in set(registry) - set(names):
                del registry[key]
        if list(self.owner._modules.items()) != self.children:
            self.owner._modules.clear()
            self.owner._modules.update(self.children)


class TrackedModel:
    """The modules and tensors of one model, as they were last found.

    Args:
        model: The model.

    Attributes:
        structures: The structure of each module.
        backups: The backup of each buffer and parameter.
        moving: The backups of tensors that forward may change; all of them
            while that is not known yet.
        quiet: The other backups. A window only reads the version counters
            of their tensors.
        hooked: The parts that can have communication hooks.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.structures: List[ModuleStructure] = []
        self.backups: List[TensorBackup] = []
        self.moving: List[TensorBackup] = []
        self.quiet: List[TensorBackup] = []
        self.hooked: List[nn.Module] = []

    def is_outdated(self) -> bool:
        """Whether a module gained or lost a part since it was last found."""
        return any(structure.is_outdated() for structure in self.structures)

    def restore_structure(self) -> None:
        """Give every module the parts back that it was last found with."""
        for structure in self.structures:
            structure.restore()

    def divide(self, is_probing: bool) -> None:
        """Divide the backups into ``moving`` and ``quiet``."""
        self.moving, self.quiet = [], []
        for backup in self.backups:
            # While nothing is known, everything may move, except for the
            # weights of quantized models: gigabytes that do not change.
            if backup.is_changing or (is_probing and not backup.is_opaque):
                self.moving.append(backup)
            elif backup.has_counter:
                self.quiet.append(backup)


class KnownMasks:
    """Knows the parameters that were non-finite before the first window.

    A parameter that held Inf, but no NaN, is a mask: only NaN is bad in it. A
    parameter that held NaN may have rows that no sample uses, or it was
    damaged before training began; the first losses tell.

    Attributes:
        num_bad_losses: Number of losses that were not finite while nothing
            was committed yet.
    """

    def __init__(self) -> None:
        self.num_bad_losses = 0
        # Nothing here keeps a parameter alive. The norms stay on the device
        # until somebody asks.
        self._params: List[Callable[[], Optional[Tensor]]] = []
        self._norms: List[Tensor] = []
        # Parameter -> whether it held NaN.
        self._had_nan = WeakIdKeyDictionary()

    @torch.no_grad()
    def look(self, params: Iterable[Tensor]) -> None:
        """Note which parameters are finite at present; no sync."""
        values = []
        for param in params:
            numbers = real_values(param)
            if numbers is not None:
                self._params.append(weakref.ref(param))
                values.append(numbers)
        # NaN in a parameter makes its norm NaN, else Inf makes it inf.
        self._norms += tensor_norms(values, 2.0)

    def note_bad_loss(self) -> None:
        """Count a loss that is not finite although nothing is committed."""
        self.num_bad_losses += 1

    def had_nan(self) -> 'WeakIdKeyDictionary':
        """Return these parameters, and whether each held NaN.

        Syncs the device at the first call after a look.
        """
        norms = read_once({'norms': self._norms})['norms']
        for reference, norm in zip(self._params, norms):
            param = reference()
            if param is not None and not math.isfinite(norm):
                self._had_nan[param] = math.isnan(norm)
        self._params, self._norms = [], []
        return self._had_nan


class ChangeTracker:
    """Learns over the windows which tensors forward passes change.

    A model's parameters can be gigabytes, and forward changes few of them
    (momentum encoders, prototypes that are kept normalized). Over the first
    windows all of them are copied to the host and compared. From then on the
    parameters that were changed are treated like buffers, with the frozen
    part of the model that they belong to, and of the other parameters only
    the version counter is read.

    Args:
        others: The other optimizers of the run, if there are any.

    Attributes:
        masks: The parameters that were non-finite before the first window.
        filled: The modules whose buffers stay as rejected windows left them,
            until the next commit.
    """

    def __init__(self, others: Optional[OtherOptimizers] = None) -> None:
        self.others = others or OtherOptimizers()
        self.masks = KnownMasks()
        self.filled: MutableSet[nn.Module] = WeakSet()
        self._models: Dict[nn.Module, TrackedModel] = {}
        # By module, and then by registry and name. A module that forward
        # makes anew is not kept alive.
        self._backups: WeakKeyDictionary[nn.Module, Backups] = (
            WeakKeyDictionary()
        )
        self._reported: MutableSet[TensorBackup] = WeakSet()
        self._num_commits = 0

    @property
    def is_probing(self) -> bool:
        """Whether all tensors are still copied and compared."""
        return self._num_commits < NUM_PROBED_WINDOWS

    @property
    def has_committed(self) -> bool:
        """Whether any window was committed."""
        return self._num_commits > 0

    def find_harmless(self) -> List[Tensor]:
        """Return the parameters that do no harm although non-finite.

        Syncs the device once in a run.
        """
        # Without a commit, NaN may be damage.
        return list(self.masks.had_nan()) if self.has_committed else []

    def find(self, model: nn.Module) -> TrackedModel:
        """Return the modules and tensors that a model has at present."""
        tracked = self._models.get(model)
        if tracked is None:
            # Before the first forward pass, which may change parameters.
            self.masks.look(model.parameters())
            tracked = self._models[model] = TrackedModel(model)
            self._update(tracked)
        elif tracked.is_outdated():
            self._update(tracked)
        return tracked

    def note_changing(self, backups: Sequence[TensorBackup]) -> None:
        """Note that forward changed these tensors, which was not known."""
        models = [(t.model, t.backups) for t in self._models.values()]
        note_changing(backups, models)
        self._divide()

    def count_commit(self) -> None:
        """Note that a window was committed; the first windows are probed."""
        self._num_commits += 1
        self.filled.clear()
        if self._num_commits == NUM_PROBED_WINDOWS:
            self._divide()
            for backups in self._backups.values():
                for backup in backups.values():
                    if not backup.is_changing:
                        backup.drop_copy()

    def _divide(self) -> None:
        for tracked in self._models.values():
            tracked.divide(self.is_probing)

    def _report_left_alone(self, tracked: TrackedModel) -> None:
        """Report the tensors that cannot be put back or judged, once each."""
        names = {id(m): name for name, m in tracked.model.named_modules()}
        lost, unread = [], []
        for backup in tracked.backups:
            tensor = backup.tensor
            if tensor is None or backup in self._reported:
                continue
            self._reported.add(backup)
            where = f'{names.get(id(backup.owner), "")}.{backup.key}'
            text = f'{where.lstrip(".")} ({type(tensor).__name__})'
            if backup.is_lost:
                lost.append(text)
            elif backup.is_unread:
                unread.append(text)
        if lost or unread:
            self.others.report_left_alone(lost, unread)

    def _update(self, tracked: TrackedModel) -> None:
        """Find the modules and tensors of a model anew.

        A module that the model lost in an earlier window keeps its backups.
        """
        owners = list(tracked.model.modules())
        tracked.structures = list(map(ModuleStructure, owners))
        foreign = self.others.find_params()
        tracked.hooked = list(filter(have_comm_hooks, owners))
        present = set(owners)
        # An ordered set. Known backups go first and keep their copies.
        backups: Dict[TensorBackup, None] = {}
        for backup in tracked.backups:
            if backup.is_of(present):
                backups[backup] = None
        for owner in owners:
            for registry in ('_buffers', '_parameters'):
                for key, tensor in getattr(owner, registry).items():
                    is_param = registry == '_parameters'
                    # Another optimizer may commit to its own parameters at
                    # any time.
                    if is_param and (tensor is None or id(tensor) in foreign):
                        continue
                    # A lazy tensor has no values yet.
                    if is_lazy(tensor):
                        continue
                    known = self._backups.setdefault(owner, {})
                    if (registry, key) not in known:
                        backup = TensorBackup(owner, registry, key)
                        known[registry, key] = backup
                    backups[known[registry, key]] = None
        tracked.backups = list(backups)
        self._report_left_alone(tracked)
        note_averages(tracked.backups, owners)
        tracked.divide(self.is_probing)


def lazy_tensors(owner: nn.Module) -> List[int]:
    """Return the ids of a module's buffers and parameters without values."""
    ids = []
    for registry in (owner._buffers, owner._parameters):
        for tensor in registry.values():
            if tensor is not None and is_lazy(tensor):
                ids.append(id(tensor))
    return ids
