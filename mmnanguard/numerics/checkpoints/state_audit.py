"""An audit of the tensors that a run keeps from update to update.

A hook collects the tensors (weights, buffers, optimizer states, averages) and
:class:`StateAudit` finds the non-finite tensors among them. A clean audit
costs a norm per tensor and a single sync.
"""

import math
import weakref
from itertools import chain
from operator import attrgetter
from typing import (
    Callable,
    Dict,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
    Union,
)

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
        where: The kind: 'weights', 'buffers', 'optimizer' or 'ema'.
        name: The name, which is unique within ``where``. An average has the
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
        names: The pairs (where, name) of all bad tensors.
        tensors: The details of a few bad tensors of each ``where``.
    """

    names: Tuple[Tuple[str, str], ...] = ()
    tensors: Tuple[BadTensor, ...] = ()


class Judged(NamedTuple):
    """A kept tensor with its elements as real numbers."""

    item: KeptTensor
    values: Tensor


ITEM = attrgetter('item')
VALUES = attrgetter('values')


class StateAudit:
    """Finds non-finite tensors among all that a run keeps.

    A tensor that holds Inf at the beginning is a mask by design (such as
    attention's): only NaN is bad in it. In a trained weight that was loaded,
    only -inf beside finite elements is taken for design. The average of a
    mask is not judged, since averaging turns Inf into NaN. The model may also
    replace a tensor by a mask later.

    Args:
        kept: All tensors of the run, at the beginning.
        is_fresh: Whether nothing was loaded. NaN at the beginning is then
            there by design as well.
    """

    def __init__(
        self, kept: Sequence[KeptTensor], is_fresh: bool = False
    ) -> None:
        self._masks: Set[str] = set()
        self._not_judged: Set[str] = set()
        # The tensors of the last audit that can be masks, by name.
        self._last: Dict[str, Callable[[], Optional[Tensor]]] = {}
        candidates = []
        for item in kept:
            if item.can_be_mask or item.where == 'weights':
                candidates.append(item)
        for item in self._nonfinite(candidates):
            if has_nan(item.value):
                # No mask holds NaN: in a loaded state it is a fault.
                if is_fresh:
                    self._not_judged.add(item.name)
            elif item.can_be_mask or is_fresh or has_masked_rows(item.value):
                self._masks.add(item.name)
        self._remember(kept)

    @torch.no_grad()
    def check(self, kept: Sequence[KeptTensor]) -> AuditResult:
        """Find the non-finite tensors; syncs once if there are none.

        Args:
            kept: All tensors of the run, at present.
        """
        # Norms are cheap; elements are searched only if a norm is not finite.
        bad = [] if self._is_clean(kept) else self._find_bad(kept)
        self._remember(kept)
        names: List[Tuple[str, str]] = []
        details: Dict[str, List[BadTensor]] = {}
        for item in bad:
            names.append((item.where, item.name))
            described = details.setdefault(item.where, [])
            values = elements(item.value)
            if len(described) < MAX_BLAMED and values is not None:
                described.append(describe(item.name, item.where, values))
        tensors = chain.from_iterable(details.values())
        return AuditResult(tuple(names), tuple(tensors))

    def _is_clean(self, kept: Sequence[KeptTensor]) -> bool:
        """Whether all norms are finite and no mask holds NaN; syncs once.

        False also for finite elements above 1.8e19, whose norm overflows.
        """
        judged, masks = self._to_judge(kept)
        norms = tensor_norms(list(map(VALUES, judged)), 2.0)
        # The norm of a mask is inf and says nothing about NaN.
        is_nan = [torch.isnan(values).any() for _, values in masks]
        # The norms and the flags share a single transfer to the host.
        read = read_once({'norms': norms, 'is_nan': is_nan})
        are_finite = all(map(math.isfinite, read['norms']))
        return are_finite and not any(read['is_nan'])

    def _find_bad(self, kept: Sequence[KeptTensor]) -> List[KeptTensor]:
        """Return the bad tensors, and note new masks; syncs."""
        judged, masks = self._to_judge(kept)
        bad = [item for item, values in masks if has_nan(values)]
        for item in self._nonfinite(list(map(ITEM, judged))):
            # A new tensor of this name may be a mask that the model has made
            # anew. A tensor that was there before has gone bad.
            last = self._last.get(item.name)
            is_new = last is None or last() is not item.value
            if (
                item.can_be_mask
                and is_new
                and is_like_mask(torch.as_tensor(item.value), ABSURD)
            ):
                self._masks.add(item.name)
            else:
                bad.append(item)
        return bad

    def _to_judge(
        self, kept: Sequence[KeptTensor]
    ) -> Tuple[List[Judged], List[Judged]]:
        """Return the items that must be finite, and the known masks."""
        judged, masks = [], []
        for item in kept:
            values = elements(item.value)
            if values is None or item.name in self._not_judged:
                continue
            if item.name not in self._masks:
                judged.append(Judged(item, values))
            elif item.where != 'ema':
                # The average of a mask has the same name and is not judged.
                masks.append(Judged(item, values))
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
        """Remember the tensors of this audit, without keeping them alive."""
        self._last = {}
        for item in kept:
            if item.can_be_mask and isinstance(item.value, Tensor):
                self._last[item.name] = weakref.ref(item.value)


def has_nan(value: Union[Tensor, float]) -> bool:
    """Whether any element is NaN. Syncs the device."""
    values = elements(value)
    return values is not None and bool(torch.isnan(values).any())


def has_masked_rows(value: Union[Tensor, float]) -> bool:
    """Whether a weight is finite but for -inf, such as that of unused rows.

    Syncs the device.
    """
    values = elements(value)
    if values is None:
        return False
    is_finite, is_masked = values.isfinite(), values.isneginf()
    return bool((is_finite | is_masked).all() & is_finite.any())
