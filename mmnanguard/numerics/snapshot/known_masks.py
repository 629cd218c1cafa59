"""The parameters that are non-finite by design, such as masks of -inf."""

import math
import weakref
from typing import Iterable, List, Optional, Sequence

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakIdKeyDictionary

from ..base.host_read import read_once
from ..base.norms import tensor_norms
from ..base.shards import local
from .tensor_backup import TensorBackup, can_judge

__all__ = ['KnownMasks', 'weights_to_judge']


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
        self._params: List[weakref.ref[Tensor]] = []
        self._norms: List[Tensor] = []
        # Parameter -> whether it held NaN.
        self._had_nan = WeakIdKeyDictionary()

    @torch.no_grad()
    def look(self, params: Iterable[Tensor]) -> None:
        """Note which parameters are finite at present; no sync."""
        values = []
        for param in params:
            # A lazy parameter has no values yet.
            if not is_lazy(param) and can_judge(local(param)):
                self._params.append(weakref.ref(param))
                values.append(local(param))
        # NaN in a parameter makes its norm NaN, else Inf makes it inf.
        self._norms += tensor_norms(values, 2.0)

    def _read(self) -> None:
        """Read the norms of the last looks; syncs the device once."""
        norms = read_once({'norms': self._norms})['norms']
        for reference, norm in zip(self._params, norms):
            param = reference()
            if param is not None and not math.isfinite(norm):
                self._had_nan[param] = math.isnan(norm)
        self._params, self._norms = [], []

    def __contains__(self, param: Optional[Tensor]) -> bool:
        self._read()
        return param in self._had_nan

    def params(self) -> List[Tensor]:
        """Return these parameters; syncs the device."""
        self._read()
        return list(self._had_nan)

    def had_nan(self, param: Tensor) -> bool:
        """Whether a parameter held NaN before the first window."""
        return param in self and bool(self._had_nan[param])


def weights_to_judge(
    weights: Sequence[Tensor],
    masks: KnownMasks,
    changed: Iterable[TensorBackup],
    nan_is_harmless: bool,
) -> List[Tensor]:
    """Return the parameters whose elements must all be finite now.

    Left out are parameters that are non-finite by design, and parameters that
    this window's forward passes changed and that were sound before: the
    window's end puts them back. Syncs the device if there are such
    parameters.

    Args:
        weights: The parameters.
        masks: The parameters that were non-finite before the first window.
        changed: The backups of tensors that the window has changed, and that
            can be restored.
        nan_is_harmless: Whether NaN that was there before the first window is
            known to do no harm, because the loss is or was finite beside it.
    """
    restored = set()
    for backup in changed:
        if backup.is_param and backup.tensor in masks:
            backup.was_finite = False
        # A copy that is bad itself puts back what was bad before.
        if backup.is_param and not backup.went_bad_before():
            restored.add(id(backup.tensor))
    judged = []
    for param in weights:
        if id(param) in restored:
            continue
        if param in masks:
            if masks.had_nan(param) and nan_is_harmless:
                continue
            if not bool(local(param.detach()).isnan().any()):
                continue
        judged.append(param)
    return judged
