"""The numbers that a run began with, to compare later ones with."""

import math
from dataclasses import dataclass, field
from statistics import median_low
from typing import Any, Mapping, Optional, Sequence, Tuple

from .sample import Sample

__all__ = ['Start']

NUM_LOSSES = 3
NUM_RATIOS = 3


@dataclass(frozen=True)
class Start:
    """The first losses, attention logits and update ratios of a run.

    Attributes:
        losses: The median of the first three losses of each optimizer, or the
            first one if it is lower.
        logits: The largest argument of a softmax in the first sample that had
            one; None if none had.
        ratios: The update ratios of the first three samples.
    """

    losses: Mapping[str, float] = field(default_factory=dict)
    logits: Optional[float] = None
    ratios: Tuple[float, ...] = ()

    def after(
        self, sample: Sample, losses: Mapping[str, Sequence[float]]
    ) -> 'Start':
        """Return the start as it is known after a sample.

        Args:
            sample: The sample.
            losses: The finite losses of the last commits of each optimizer,
                oldest first.
        """
        first = dict(self.losses)
        for name, of_name in losses.items():
            if name not in first and len(of_name) >= NUM_LOSSES:
                # The first update may have driven the loss up already.
                median = median_low(of_name[:NUM_LOSSES])
                first[name] = min(of_name[0], median)
        logits, ratios = self.logits, self.ratios
        if logits is None and sample.logits:
            logits = max(sample.logits.values())
        if len(ratios) < NUM_RATIOS and sample.update_ratio is not None:
            ratios = (*ratios, sample.update_ratio)
        return Start(first, logits, ratios)

    @property
    def ratio(self) -> float:
        """The largest of the ratios; infinite if there are too few."""
        if len(self.ratios) < NUM_RATIOS:
            return math.inf
        return max(self.ratios)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> 'Start':
        """Return the start that a checkpoint has."""
        return cls(**{**saved, 'ratios': tuple(saved['ratios'])})
