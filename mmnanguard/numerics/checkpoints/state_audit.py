import math
import weakref
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
    """One tensor, or float, of what a run keeps from update to update.

    Attributes:
        where: 'weights', 'buffers', 'optimizer' or 'ema'.
        name: Unique at its place; that of an average is its source's.
        value: Only read.
        can_be_mask: It is not trained and holds no running statistics.
    """

    where: str
    name: str
    value: Union[Tensor, float]
    can_be_mask: bool = False


class AuditResult(NamedTuple):
    """What is not finite.

    Attributes:
        names: (where, name) of all that is bad.
        tensors: A few at each place, looked at closely.
    """

    names: Tuple[Tuple[str, str], ...] = ()
    tensors: Tuple[BadTensor, ...] = ()


class StateAudit:
    """Finds what is not finite among all that a run keeps.

    What holds Inf at the beginning does so by design (attention's masks):
    only NaN is bad in it, and its average is not judged, since averaging
    makes NaN of Inf. So does a mask that has taken the place of another
    tensor.

    Args:
        kept: All of it, as it is at the beginning.
        is_fresh: Nothing of it was loaded: NaN, too, is there by design.
    """

    def __init__(
        self, kept: Sequence[KeptTensor], is_fresh: bool = False
    ) -> None:
        self._masks: Set[str] = set()
        self._not_judged: Set[str] = set()
        self._last: Dict[str, Any] = {}
        candidates = [each for each in kept if each.can_be_mask]
        for each in self._suspects(candidates):
            if not has_nan(each.value):
                self._masks.add(each.name)
            elif is_fresh:
                self._not_judged.add(each.name)
        self._remember(kept)

    @torch.no_grad()
    def look(self, kept: Sequence[KeptTensor]) -> AuditResult:
        """One pass, and ONE host read if all is well.

        Args:
            kept: All of it, as it is now.
        """
        bad = [] if self._is_clean(kept) else self._find_bad(kept)
        self._remember(kept)
        told: Dict[str, List[BadTensor]] = {}
        for each in bad:
            few = told.setdefault(each.where, [])
            values = elements(each.value)
            if len(few) < MAX_BLAMED and values is not None:
                few.append(describe(each.name, each.where, values))
        return AuditResult(
            tuple((each.where, each.name) for each in bad),
            tuple(tensor for few in told.values() for tensor in few),
        )

    def _is_clean(self, kept: Sequence[KeptTensor]) -> bool:
        """Also False where finite elements are beyond 1.8e19: look closer."""
        judged, masks = self._to_judge(kept)
        read = read_once(
            {
                'norms': tensor_norms([values for _, values in judged], 2.0),
                'is_nan': [torch.isnan(values).any() for _, values in masks],
            }
        )
        return all(map(math.isfinite, read['norms'])) and not any(
            read['is_nan']
        )

    def _find_bad(self, kept: Sequence[KeptTensor]) -> List[KeptTensor]:
        """By name, as they come; syncs."""
        judged, masks = self._to_judge(kept)
        bad = [each for each, values in masks if has_nan(values)]
        for each in self._suspects([each for each, _ in judged]):
            last = self._last.get(each.name, lambda: None)()
            if (
                each.can_be_mask
                and last is not each.value
                and is_like_mask(torch.as_tensor(each.value), ABSURD)
            ):
                self._masks.add(each.name)
            else:
                bad.append(each)
        return bad

    def _to_judge(
        self, kept: Sequence[KeptTensor]
    ) -> Tuple[
        List[Tuple[KeptTensor, Tensor]], List[Tuple[KeptTensor, Tensor]]
    ]:
        """What must be finite, and what must not be NaN, as real numbers."""
        judged, masks = [], []
        for each in kept:
            values = elements(each.value)
            if values is None or each.name in self._not_judged:
                continue
            if each.name not in self._masks:
                judged.append((each, values))
            elif each.can_be_mask:
                masks.append((each, values))
        return judged, masks

    @staticmethod
    def _suspects(kept: Sequence[KeptTensor]) -> List[KeptTensor]:
        """What has an element that is not finite; one host read."""
        values = [elements(each.value) for each in kept]
        there = [(each, v) for each, v in zip(kept, values) if v is not None]
        bad = nonfinite_indices([v for _, v in there])
        return [there[index][0] for index in bad]

    def _remember(self, kept: Sequence[KeptTensor]) -> None:
        self._last = {
            each.name: weakref.ref(each.value)
            for each in kept
            if each.can_be_mask and isinstance(each.value, Tensor)
        }


def has_nan(value: Union[Tensor, float]) -> bool:
    values = elements(value)
    return values is not None and bool(torch.isnan(values).any())
