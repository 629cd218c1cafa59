"""The running mean and variance of norms, as ZClip needs them."""

import math
from dataclasses import dataclass, replace
from typing import Any, Dict, Mapping, Optional, Tuple

__all__ = ['NormMoments']


@dataclass(frozen=True)
class NormMoments:
    """Running mean and variance of norms.

    Attributes:
        first: Norms of the warm-up; empty once there is a mean.
        mean: None during the warm-up, then positive.
        var: Exponentially weighted variance; each norm's deviation is from
            the mean at that time.
    """

    first: Tuple[float, ...] = ()
    mean: Optional[float] = None
    var: float = 0.0

    def after(self, norm: float, alpha: float, warmup: int) -> 'NormMoments':
        """Return the moments with one norm more.

        Args:
            norm: Positive and finite.
            alpha: Weight of the past.
            warmup: Number of norms that the first mean is taken of.
        """
        if self.mean is not None:
            mean = alpha * self.mean + (1 - alpha) * norm
            # The deviation is from the new mean, as in the authors' code.
            var = alpha * self.var + (1 - alpha) * (norm - mean) ** 2
            return replace(self, mean=mean, var=var)
        first = (*self.first, norm)
        if len(first) < warmup:
            return replace(self, first=first)
        mean = math.fsum(first) / len(first)
        var = math.fsum((norm - mean) ** 2 for norm in first) / len(first)
        return NormMoments((), mean, var)

    def to_dict(self) -> Dict[str, Any]:
        """Return the moments in Python's own types."""
        return {'first': list(self.first), 'mean': self.mean, 'var': self.var}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> 'NormMoments':
        """Read the result of ``to_dict``; missing keys get defaults."""
        return cls(
            tuple(saved.get('first', ())),
            saved.get('mean'),
            saved.get('var', 0.0),
        )
