"""The clip rules that a config names and that need only numbers."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Dict, Mapping, Optional, Tuple

from ..checks import is_finite_number, is_number
from .checks import check_clip, check_count, check_norm_type, check_positive
from .clip_rule import ClipRule, NormClip
from .moments import NormMoments
from .window import SortedWindow

__all__ = ['AutoClip', 'TieredClip', 'ZClip']

# Larger norms are not remembered, so that the squares of norms stay finite.
LARGEST = 1e150


@dataclass(frozen=True)
class TieredClip(ClipRule):
    """The larger the norm, the more it is clipped, in steps.

    Attributes:
        tiers: Pairs (above, max_norm), in any order: a norm above the
            first number (exclusive), and in no higher tier, is clipped to
            the second, as ``NormClip`` clips. A norm in no tier passes.
        norm_type: As in ``NormClip``.
    """

    tiers: Tuple[Tuple[float, float], ...] = ()
    norm_type: float = 2.0

    def __post_init__(self) -> None:
        try:
            tiers = sorted(((a, b) for a, b in self.tiers), reverse=True)
            is_right = bool(tiers) and all(
                is_finite_number(above)
                and above >= 0
                and is_number(max_norm)
                and max_norm > 0
                for above, max_norm in tiers
            )
        except (TypeError, ValueError):
            is_right = False
        check_clip(
            is_right,
            'tiers',
            self.tiers,
            'a list of pairs (above, max_norm), the first 0 or more, the '
            'second above 0, such as [(10, 1), (0, 5)]: above 10 clip to 1, '
            'else to 5',
        )
        check_clip(
            len({above for above, _ in tiers}) == len(tiers),
            'tiers',
            self.tiers,
            'a list in which no two pairs begin with the same number',
        )
        check_norm_type(self.norm_type)
        object.__setattr__(self, 'tiers', tuple(tiers))

    def __call__(self, norm: float) -> float:
        for above, max_norm in self.tiers:
            if norm > above:
                return NormClip(max_norm)(norm)
        return 1.0

    def jumps(self) -> Tuple[Tuple[float, float, float], ...]:
        """Return the edges at which a larger norm is clipped to more.

        Returns:
            One triple (edge, above, below) for each of them. A norm just
            above the edge is clipped to ``above``, a norm on it to ``below``.
        """
        lower = [*(max_norm for _, max_norm in self.tiers[1:]), math.inf]
        return tuple(
            (edge, min(edge, max_norm), min(edge, below))
            for (edge, max_norm), below in zip(self.tiers, lower)
            if min(edge, max_norm) > min(edge, below)
        )

    def __str__(self) -> str:
        tiers = [f'above {a:g} to {b:g}' for a, b in self.tiers]
        return f'clip_grad TieredClip {", ".join(tiers)}'


@dataclass(frozen=True)
class AutoClip(ClipRule):
    """Clip to a percentile of the norms so far, the present one included.

    Attributes:
        percentile: In [0, 100), interpolated linearly.
        window: Number of latest norms that the percentile is taken of; at
            least 2.
        warmup: Commits before the first update that may be clipped.
        norm_type: As in ``NormClip``.
        past: Norms of the last ``window`` - 1 commits. A norm of 0 is left
            out: a percentile of 0 would end training.

    References:
        Seetharaman, Wichern, Pardo, Le Roux, AutoClip: Adaptive Gradient
        Clipping for Source Separation Networks, 2020,
        https://arxiv.org/abs/2007.14469
    """

    percentile: float = 10.0
    window: int = 1000
    warmup: int = 0
    norm_type: float = 2.0
    past: SortedWindow = field(
        default_factory=SortedWindow, metadata=ClipRule.STATE
    )

    def __post_init__(self) -> None:
        check_clip(
            is_number(self.percentile) and 0 <= self.percentile < 100,
            'percentile',
            self.percentile,
            'a number in [0, 100); at 100 nothing would ever be clipped',
        )
        check_count('window', self.window, least=2)
        check_count('warmup', self.warmup, least=0)
        check_clip(
            self.warmup < self.window,
            'warmup',
            self.warmup,
            f'below window={self.window}, or nothing would ever be clipped',
        )
        check_norm_type(self.norm_type)

    def __call__(self, norm: float) -> float:
        if len(self.past.row) < self.warmup:
            return 1.0
        limit = self.past.percentile(self.percentile, norm)
        return 1.0 if norm <= limit else limit / norm

    def after(self, norm: float) -> 'AutoClip':
        if not is_memorable(norm):
            return self
        return replace(self, past=self.past.after(norm, self.window - 1))

    def to_dict(self) -> Dict[str, Any]:
        return {'type': type(self).__name__, 'norms': list(self.past.row)}

    def with_state(self, saved: Mapping[str, Any]) -> 'AutoClip':
        norms = filter(is_memorable, saved.get('norms', ()))
        return replace(self, past=SortedWindow.of(norms, self.window - 1))

    def __str__(self) -> str:
        return f'clip_grad AutoClip percentile={self.percentile:g}'


@dataclass(frozen=True)
class ZClip(ClipRule):
    """Clip a norm that is an outlier among the norms so far.

    With their running mean and deviation, a norm whose z-score is above the
    threshold is clipped to mean + z_threshold**2 * deviation / z: the
    farther out, the nearer to the mean. The clipped norm, not the outlier,
    enters the statistics.

    Attributes:
        alpha: Weight of the past in mean and variance, in (0, 1).
        z_threshold: Above 0.
        warmup: Number of first commits. The statistics start from the plain
            mean and variance of their norms; until then only ``max_norm``
            clips.
        max_norm: Upper limit at all times; None means no such limit.
        eps: Added to the deviation in the z-score; above 0.
        norm_type: As in ``NormClip``.
        past: Mean and variance, or the norms of the warm-up. A norm of 0
            does not enter: a mean of 0 would end training.

    References:
        Kumar, Owen, Chowdhury, Guera, ZClip: Adaptive Spike Mitigation for
        LLM Pre-Training, 2025, https://arxiv.org/abs/2504.02507
    """

    alpha: float = 0.97
    z_threshold: float = 2.5
    warmup: int = 25
    max_norm: Optional[float] = 1.0
    eps: float = 1e-6
    norm_type: float = 2.0
    past: NormMoments = field(
        default_factory=NormMoments, metadata=ClipRule.STATE
    )

    def __post_init__(self) -> None:
        is_share = is_number(self.alpha) and 0 < self.alpha < 1
        check_clip(is_share, 'alpha', self.alpha, 'a number in (0, 1)')
        check_positive('z_threshold', self.z_threshold)
        check_count('warmup', self.warmup, least=2)
        if self.max_norm is not None:
            check_positive('max_norm', self.max_norm, ', or None')
        check_positive('eps', self.eps)
        check_norm_type(self.norm_type)

    def __call__(self, norm: float) -> float:
        limit = self.effective(norm)
        if self.max_norm is not None:
            limit = min(limit, self.max_norm)
        return 1.0 if norm <= limit else limit / norm

    def effective(self, norm: float) -> float:
        """Return the norm, or the limit that an outlier is clipped to."""
        if self.past.mean is None:
            return norm
        deviation = math.sqrt(self.past.var)
        z = (norm - self.past.mean) / (deviation + self.eps)
        if not z > self.z_threshold:
            return norm
        return self.past.mean + self.z_threshold**2 * deviation / z

    def after(self, norm: float) -> 'ZClip':
        if not is_memorable(norm):
            return self
        past = self.past.after(self.effective(norm), self.alpha, self.warmup)
        return replace(self, past=past)

    def to_dict(self) -> Dict[str, Any]:
        return {'type': type(self).__name__, **self.past.to_dict()}

    def with_state(self, saved: Mapping[str, Any]) -> 'ZClip':
        return replace(self, past=NormMoments.from_dict(saved))

    def __str__(self) -> str:
        return f'clip_grad ZClip z_threshold={self.z_threshold:g}'


def is_memorable(norm: float) -> bool:
    """Whether a norm may enter the statistics."""
    # Written so that NaN is refused.
    return 0 < norm <= LARGEST
