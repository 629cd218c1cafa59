from typing import Any, Dict, FrozenSet, List, Optional, Sequence, Set

import torch
from torch import Tensor

__all__ = ['SampleSets', 'compact']

NOBODY: FrozenSet[int] = frozenset()
# Samples that share an element, as in the gradient of Mixup; more are nobody.
MAX_TOGETHER = 3
# What is folded in reasonable time: few rows, or short ones.
MAX_ROWS = 256
MAX_FOLDED = 4096


class SampleSets:
    """Sets of samples as numbers, elementwise in tensors of integers.

    Those tensors, codes, have size 1 along dimensions over which they are
    the same. 0 is nobody; so is None in place of codes.
    """

    def __init__(self) -> None:
        self._sets: List[FrozenSet[int]] = [NOBODY]
        self._numbers: Dict[FrozenSet[int], int] = {NOBODY: 0}

    def number(self, samples: Any) -> int:
        samples = frozenset(samples)
        if len(samples) > MAX_TOGETHER:
            return 0
        if samples not in self._numbers:
            self._numbers[samples] = len(self._sets)
            self._sets.append(samples)
        return self._numbers[samples]

    def union(self, codes: Set[int]) -> FrozenSet[int]:
        return NOBODY.union(*(self._sets[code] for code in codes))

    def combine(self, many: Sequence[Optional[Tensor]]) -> Optional[Tensor]:
        """Of elements that come from all of these."""
        result: Optional[Tensor] = None
        for codes in many:
            if result is None or codes is None:
                result = codes if result is None else result
                continue
            base = len(self._sets)
            pairs = compact(result) * base + compact(codes)
            values, places = pairs.unique(return_inverse=True)
            numbers = [
                self.number(self._sets[pair // base] | self._sets[pair % base])
                for pair in values.tolist()
            ]
            result = torch.tensor(numbers)[places]
        return result

    def fold(self, codes: Optional[Tensor], dim: int) -> Optional[Tensor]:
        """Union along one dimension, which is left with size 1."""
        if codes is None or codes.shape[dim] == 1:
            return codes
        first = codes.narrow(dim, 0, 1)
        rows = codes.movedim(dim, -1)
        flat = rows.reshape(-1, rows.shape[-1])
        if len(flat) <= MAX_ROWS:
            places = torch.arange(len(flat))
            sets = [set(row.unique().tolist()) for row in flat]
        elif codes.shape[dim] <= MAX_FOLDED:
            flat, places = flat.unique(dim=0, return_inverse=True)
            sets = list(map(set, flat.tolist()))
        else:
            return torch.zeros_like(first)
        numbers = [self.number(self.union(one)) for one in sets]
        return (
            torch.tensor(numbers)[places]
            .reshape(rows.shape[:-1])
            .unsqueeze(dim if dim >= 0 else codes.dim() + dim)
        )

    def fold_rows(self, codes: Tensor, num_dims: int) -> Optional[Tensor]:
        flat = codes.reshape(len(codes), -1)
        folded = self.fold(flat, 1)
        if folded is None:
            return None
        return folded.reshape(-1, *[1] * (num_dims - 1))


def compact(codes: Tensor) -> Tensor:
    """With size 1 wherever a dimension makes no difference."""
    for dim, size in enumerate(codes.shape):
        if size > 1:
            first = codes.narrow(dim, 0, 1)
            if codes.stride(dim) == 0 or bool((codes == first).all()):
                codes = first
    return codes.clone() if codes.numel() == 1 else codes.contiguous()
