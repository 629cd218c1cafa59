"""The facts that two configs of a run are compared by."""

from dataclasses import dataclass
from math import isclose
from typing import Any, Dict, List, Tuple

Facts = Dict[str, Any]
# Rates that differ by less than this share of the largest are equal.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Unknown:
    """A fact that the rules do not give, such as a project's own policy.

    It equals nothing, so that a migration has to report it.
    """

    why: str


@dataclass(frozen=True)
class AnyOf:
    """A fact for which the tools of 1.x projects differ."""

    values: Tuple[Any, ...]


@dataclass(frozen=True)
class Loop:
    """A training loop, with a length of epochs for the comparison.

    Attributes:
        by_epoch: Whether the loop counts epochs.
        length: The number of epochs or iterations.
    """

    by_epoch: bool
    length: int

    @property
    def epoch(self) -> int:
        """Iterations in an epoch: fewer if there are many epochs."""
        if not self.by_epoch:
            return self.length
        return max(20, min(1000, 6000 // self.length))

    @property
    def iterations(self) -> int:
        """Iterations of the whole training."""
        return self.length * self.epoch if self.by_epoch else self.length

    def moments(self, warmup: int) -> List[int]:
        """Return the iterations at which learning rates are compared.

        Args:
            warmup: The number of iterations of the warm-up.
        """
        last = self.iterations - 1
        moments = {0, 1, last, warmup // 2, warmup - 1, warmup, warmup + 1}
        moments |= {last * part // 37 for part in range(37)}
        return sorted(m for m in moments if 0 <= m <= last)


def agree(old: Any, new: Any) -> bool:
    """Whether a fact of 1.x and one of 2.x are the same."""
    if isinstance(old, Unknown) or isinstance(new, Unknown):
        return False
    if isinstance(old, AnyOf):
        return any(agree(value, new) for value in old.values)
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(
            agree(old[key], new[key]) for key in old
        )
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        return len(old) == len(new) and all(map(agree, old, new))
    if isinstance(old, float) and isinstance(new, (int, float)):
        return old == new or isclose(old, new, rel_tol=1e-12)
    return bool(old == new)


def rate_gap(old: Any, new: Any) -> float:
    """Return the largest difference of two lists of rates, relative to the
    largest rate; infinite if they cannot be compared.
    """
    if not isinstance(old, list) or not isinstance(new, list):
        return float('inf')
    top = max(map(abs, old)) or 1.0
    return max(abs(a - b) for a, b in zip(old, new)) / top
