"""Sets of samples as integers, so that tensors can hold them."""

from typing import Dict, FrozenSet, Iterable, List, Optional, Sequence, Set

import torch
from torch import Tensor

__all__ = ['SampleSets', 'compact']

NOBODY: FrozenSet[int] = frozenset()
# The largest number of samples that share an element, as in the gradient of
# Mixup. A larger set is no help to a user and counts as unknown.
MAX_TOGETHER = 3
# Limits within which a fold takes a reasonable time: few or short rows.
MAX_ROWS = 256
MAX_FOLDED = 4096


class SampleSets:
    """Sets of samples, each with a number.

    A tensor of these numbers, with a number for each element of another
    tensor, is called codes. Codes have size 1 along dimensions over which
    they are constant. The number 0 means that the samples are not known, and
    so does None in place of codes.
    """

    def __init__(self) -> None:
        self._sets: List[FrozenSet[int]] = [NOBODY]
        self._numbers: Dict[FrozenSet[int], int] = {NOBODY: 0}

    def number(self, samples: Iterable[int]) -> int:
        """Return the number of a set of samples, a new one if needed."""
        samples = frozenset(samples)
        if len(samples) > MAX_TOGETHER:
            return 0
        if samples not in self._numbers:
            self._numbers[samples] = len(self._sets)
            self._sets.append(samples)
        return self._numbers[samples]

    def number_single(self, sample: int) -> int:
        """Return the number of the set that holds a single sample."""
        return self.number({sample})

    def union(self, codes: Set[int]) -> FrozenSet[int]:
        """Return all samples in the sets with these numbers."""
        return NOBODY.union(*map(self._sets.__getitem__, codes))

    def combine(self, many: Sequence[Optional[Tensor]]) -> Optional[Tensor]:
        """Return the codes of elements that depend on several tensors.

        Args:
            many: The codes of these tensors; None is ignored.
        """
        result: Optional[Tensor] = None
        for codes in many:
            if codes is None:
                continue
            if result is None:
                result = codes
                continue
            # A pair of codes is encoded as a number, so that unique() returns
            # each pair only once.
            base = len(self._sets)
            pairs = compact(result) * base + compact(codes)
            values, places = pairs.unique(return_inverse=True)
            numbers = []
            for pair in values.tolist():
                first, second = divmod(pair, base)
                numbers.append(
                    self.number(self._sets[first] | self._sets[second])
                )
            # Without the type, no numbers at all would be float32.
            result = torch.tensor(numbers, dtype=torch.long)[places]
        return result

    def fold(self, codes: Optional[Tensor], dim: int) -> Optional[Tensor]:
        """Return the union along a dimension, which is kept with size 1."""
        if codes is None or codes.shape[dim] == 1:
            return codes
        if not codes.numel():
            # An empty selection depends on nobody.
            return codes.sum(dim, keepdim=True)
        first = codes.narrow(dim, 0, 1)
        rows = codes.movedim(dim, -1)
        flat = rows.reshape(-1, rows.shape[-1])
        if len(flat) <= MAX_ROWS:
            places = torch.arange(len(flat))
        elif codes.shape[dim] <= MAX_FOLDED:
            # Equal rows are folded only once.
            flat, places = flat.unique(dim=0, return_inverse=True)
        else:
            return torch.zeros_like(first)  # not known
        numbers = []
        for row in flat:
            samples = self.union(set(row.unique().tolist()))
            numbers.append(self.number(samples))
        folded = torch.tensor(numbers)[places].reshape(rows.shape[:-1])
        return folded.unsqueeze(dim % codes.dim())

    def fold_rows(self, codes: Tensor, num_dims: int) -> Optional[Tensor]:
        """Return the union of each row, in ``num_dims`` dimensions."""
        flat = codes.reshape(len(codes), -1)
        folded = self.fold(flat, 1)
        if folded is None:
            return None
        return folded.reshape(-1, *[1] * (num_dims - 1))


def compact(codes: Tensor) -> Tensor:
    """Reduce dimensions over which the codes are constant to size 1."""
    for dim, size in enumerate(codes.shape):
        if size > 1:
            first = codes.narrow(dim, 0, 1)
            # A stride of 0 needs no comparison.
            if codes.stride(dim) == 0 or bool((codes == first).all()):
                codes = first
    # A copy, because a view of one element would keep all of them alive.
    if codes.numel() == 1:
        return codes.clone()
    return codes.contiguous()
