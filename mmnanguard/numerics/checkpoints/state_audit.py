"""An audit of all that a run keeps from update to update."""

import math
import weakref
from itertools import chain
from typing import Any, Dict, List, NamedTuple, Sequence, Set, Tuple, Union

import torch
from torch import Tensor

from mmnanguard.core import BadTensor

from ..base.host_read import read_once
from ..base.norms import tensor_norms
from ..update.blame import MAX_BLAMED, describe
from ..update.observe import nonfinite_indices
from .scan import ABSURD, elements, is_like_mask

__all__ = ['AuditResult', 'KeptTensor', 'StateAudit']


class KeptTensor(NamedTuple):
    """A tensor or float that a run keeps from update to update.

    Attributes:
        where: 'weights', 'buffers', 'optimizer' or 'ema'.
        name: Unique among the tensors of one ``where``. An average has the
            name of its source.
        value: The tensor or float itself, which is only read.
        can_be_mask: Whether the value is neither trained nor a running
            statistic.
    """

    where: str
    name: str
    value: Union[Tensor, float]
    can_be_mask: bool = False


class AuditResult(NamedTuple):
    """The non-finite tensors that an audit found.

    Attributes:
        names: (where, name) of all bad tensors.
        tensors: Details of a few bad tensors of each ``where``.
    """

    names: Tuple[Tuple[str, str], ...] = ()
    tensors: Tuple[BadTensor, ...] = ()


class StateAudit:
    """Finds non-finite tensors among all that a run keeps.

    A tensor that holds Inf at the beginning is a mask by design (such as
    attention's): only NaN is bad in it. Its average is not judged, since
    averaging turns Inf into NaN. A mask that replaces another tensor later
    is treated alike.

    Args:
        kept: All tensors of the run, at the beginning.
        is_fresh: Whether nothing was loaded. NaN at the beginning is then
            there by design, too.
    """

    def __init__(
        self, kept: Sequence[KeptTensor], is_fresh: bool = False
    ) -> None:
        self._masks: Set[str] = set()
        self._not_judged: Set[str] = set()
        self._last: Dict[str, Any] = {}
        candidates = [item for item in kept if item.can_be_mask]
        for item in self._nonfinite(candidates):
            if not has_nan(item.value):
                self._masks.add(item.name)
            elif is_fresh:
                self._not_judged.add(item.name)
        self._remember(kept)

    @torch.no_grad()
    def look(self, kept: Sequence[KeptTensor]) -> AuditResult:
        """Look for non-finite tensors; syncs once if there are none.

        Args:
            kept: All tensors of the run, at present.
        """
        bad = [] if self._is_clean(kept) else self._find_bad(kept)
        self._remember(kept)
        details: Dict[str, List[BadTensor]] = {}
        for item in bad:
            described = details.setdefault(item.where, [])
            values = elements(item.value)
            if len(described) < MAX_BLAMED and values is not None:
                described.append(describe(item.name, item.where, values))
        names = tuple((item.where, item.name) for item in bad)
        return AuditResult(names, tuple(chain.from_iterable(details.values())))

    def _is_clean(self, kept: Sequence[KeptTensor]) -> bool:
        """Whether all norms are finite and no mask holds NaN; syncs once.

        False also for finite elements above 1.8e19, whose norm overflows.
        """
        judged, masks = self._to_judge(kept)
        norms = tensor_norms([values for _, values in judged], 2.0)
        is_nan = [torch.isnan(values).any() for _, values in masks]
        # Both questions share the one transfer to the host.
        read = read_once({'norms': norms, 'is_nan': is_nan})
        are_finite = all(map(math.isfinite, read['norms']))
        return are_finite and not any(read['is_nan'])

    def _find_bad(self, kept: Sequence[KeptTensor]) -> List[KeptTensor]:
        """Return the bad tensors, and note new masks; syncs."""
        judged, masks = self._to_judge(kept)
        bad = [item for item, values in masks if has_nan(values)]
        for item in self._nonfinite([item for item, _ in judged]):
            last = self._last.get(item.name, lambda: None)()
            # A new tensor of this name may be a mask that the model has made
            # anew. An old one has gone bad.
            if (
                item.can_be_mask
                and last is not item.value
                and is_like_mask(torch.as_tensor(item.value), ABSURD)
            ):
                self._masks.add(item.name)
            else:
                bad.append(item)
        return bad

    def _to_judge(
        self, kept: Sequence[KeptTensor]
    ) -> Tuple[
        List[Tuple[KeptTensor, Tensor]], List[Tuple[KeptTensor, Tensor]]
    ]:
        """Return the items that must be finite, and those without NaN.

        Each item comes with its elements as real numbers.
        """
        judged, masks = [], []
        for item in kept:
            values = elements(item.value)
            if values is None or item.name in self._not_judged:
                continue
            if item.name not in self._masks:
                judged.append((item, values))
            elif item.can_be_mask:
                masks.append((item, values))
        return judged, masks

    @staticmethod
    def _nonfinite(kept: Sequence[KeptTensor]) -> List[KeptTensor]:
        """Return the items with a non-finite element; syncs once."""
        items, tensors = [], []
        for item in kept:
            values = elements(item.value)
            if values is not None:
                items.append(item)
                tensors.append(values)
        return [items[index] for index in nonfinite_indices(tensors)]

    def _remember(self, kept: Sequence[KeptTensor]) -> None:
        """Keep which tensors there were, without keeping them alive."""
        self._last = {}
        for item in kept:
            if item.can_be_mask and isinstance(item.value, Tensor):
                self._last[item.name] = weakref.ref(item.value)


def has_nan(value: Union[Tensor, float]) -> bool:
    """Whether any element is NaN. Syncs the device."""
    values = elements(value)
    return values is not None and bool(torch.isnan(values).any())
