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
        mean: Exponentially weighted mean, which is positive; None during the
            warm-up.
        var: Exponentially weighted variance. Each norm enters with its
            deviation from the first mean that includes it.
    """

    first: Tuple[float, ...] = ()
    mean: Optional[float] = None
    var: float = 0.0

    def after(self, norm: float, alpha: float, warmup: int) -> 'NormMoments':
        """Return the moments after one more norm.

        Args:
            norm: The norm to add, positive and finite.
            alpha: Weight of the past.
            warmup: Number of norms from which the first mean is computed.
        """
        if self.mean is not None:
            mean = alpha * self.mean + (1 - alpha) * norm
            # The deviation is from the new mean, as in the authors' code
            # (https://github.com/bluorion-com/ZClip).
            var = alpha * self.var + (1 - alpha) * (norm - mean) ** 2
            return replace(self, mean=mean, var=var)
        first = (*self.first, norm)
        if len(first) < warmup:
            return replace(self, first=first)
        # math.fsum rounds only once, so no rounding errors add up.
        mean = math.fsum(first) / len(first)
        var = math.fsum((norm - mean) ** 2 for norm in first) / len(first)
        return NormMoments((), mean, var)

    def to_dict(self) -> Dict[str, Any]:
        """Return the moments in Python's own types."""
        return {'first': list(self.first), 'mean': self.mean, 'var': self.var}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> 'NormMoments':
        """Return the moments that ``to_dict`` saved.

        Missing keys get their defaults.
        """
        # Saved as a list; a tuple keeps the record immutable.
        return cls(
            tuple(saved.get('first', ())),
            saved.get('mean'),
            saved.get('var', 0.0),
        )
