"""The clip rules of this package that need only numbers.

docs/en/clipping.md describes them and their differences from the papers.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Dict, Iterable, Mapping, Optional, Tuple

from ..checks import is_finite_number, is_number
from .checks import check_clip, check_count, check_norm_type, check_positive
from .clip_rule import ClipRule, NormClip
from .moments import NormMoments
from .window import SortedWindow

__all__ = ['AutoClip', 'TieredClip', 'ZClip']

# Larger norms are not remembered, so that the squares of norms stay finite:
# the largest float64 is about 1.8e308.
LARGEST = 1e150
Tiers = Tuple[Tuple[float, float], ...]


@dataclass(frozen=True)
class TieredClip(ClipRule):
    """Clip larger norms to smaller limits, in steps.

    Attributes:
        tiers: Pairs (above, max_norm), in any order. A norm belongs to the
            highest tier whose ``above`` it exceeds (exclusive), and
            ``NormClip(max_norm)`` clips it. A norm in no tier passes.
        norm_type: The ``norm_type`` of ``NormClip``.
    """

    tiers: Tiers = ()
    norm_type: float = 2.0

    def __post_init__(self) -> None:
        tiers = sorted_tiers(self.tiers)
        check_clip(
            bool(tiers),
            'tiers',
            self.tiers,
            'a list of pairs (above, max_norm), the first 0 or more, the '
            'second above 0, such as [(10, 1), (0, 5)]: above 10 clip to 1, '
            'else to 5',
        )
        # Of two pairs that begin with one number, one would never apply.
        check_clip(
            len(dict(tiers)) == len(tiers),
            'tiers',
            self.tiers,
            'a list in which no two pairs begin with the same number',
        )
        check_norm_type(self.norm_type)
        # The way to set a field of a frozen dataclass.
        object.__setattr__(self, 'tiers', tiers)

    def __call__(self, norm: float) -> float:
        # The highest tier comes first.
        for above, max_norm in self.tiers:
            if norm > above:
                return NormClip(max_norm)(norm)
        return 1.0

    def jumps(self) -> Tuple[Tuple[float, float, float], ...]:
        """Return the edges at which a larger norm is clipped to more.

        Returns:
            A triple (edge, above, below) for each such edge. A norm just
            above the edge is clipped to ``above``, a norm on the edge to
            ``below``.
        """
        jumps = []
        # From the lowest tier up. A norm below all tiers is not clipped.
        max_norm_below = math.inf
        for edge, max_norm in reversed(self.tiers):
            # A limit above the edge clips nothing there: the norm stays as
            # large as the edge.
            above, below = min(edge, max_norm), min(edge, max_norm_below)
            if above > below:
                jumps.append((edge, above, below))
            max_norm_below = max_norm
        return tuple(reversed(jumps))

    def __str__(self) -> str:
        words = []
        for above, max_norm in self.tiers:
            words.append(f'above {above:g} to {max_norm:g}')
        return f'clip_grad TieredClip {", ".join(words)}'


def sorted_tiers(tiers: Iterable[Iterable[float]]) -> Tiers:
    """Return the pairs of a ``TieredClip``, the highest tier first.

    Returns:
        An empty tuple if ``tiers`` is not a list of pairs of allowed numbers.
        The list comes from a config and may hold anything.
    """
    pairs = []
    try:
        for above, max_norm in tiers:
            if not (is_finite_number(above) and above >= 0):
                return ()
            # A limit of inf lets the norms of the tier pass.
            if not (is_number(max_norm) and max_norm > 0):
                return ()
            pairs.append((above, max_norm))
    except (TypeError, ValueError):  # no list, or an item that is no pair
        return ()
    return tuple(sorted(pairs, reverse=True))


@dataclass(frozen=True)
class AutoClip(ClipRule):
    """Clip to a percentile of the norms so far, including the present norm.

    Attributes:
        percentile: The percentile, in [0, 100), interpolated linearly.
        window: Number of most recent norms in the percentile; at least 2.
        warmup: Number of commits before the first update that may be clipped.
        norm_type: The ``norm_type`` of ``NormClip``.
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
        # In the warm-up, a percentile of few norms would clip by chance.
        if len(self.past.row) < self.warmup:
            return 1.0
        limit = self.past.percentile(self.percentile, norm)
        # PyTorch's 1e-6 is not added to the norm: it would clip norms near
        # 1e-6 that need no clipping.
        return factor_to(limit, norm)

    def after(self, norm: float) -> 'AutoClip':
        if not is_memorable(norm):
            return self
        # One place of the window is for the norm that is being judged.
        return replace(self, past=self.past.after(norm, self.window - 1))

    def to_dict(self) -> Dict[str, object]:
        # The order of age is saved; the order of size follows from it.
        return {'type': type(self).__name__, 'norms': list(self.past.row)}

    def with_state(self, saved: Mapping[str, Any]) -> 'AutoClip':
        norms = filter(is_memorable, saved.get('norms', ()))
        # The window may be shorter in the config than in the checkpoint.
        return replace(self, past=SortedWindow.of(norms, self.window - 1))

    def __str__(self) -> str:
        return f'clip_grad AutoClip percentile={self.percentile:g}'


@dataclass(frozen=True)
class ZClip(ClipRule):
    """Clip a norm that is an outlier among the norms so far.

    The rule keeps a running mean and deviation of norms. A norm whose z-score
    is above the threshold is clipped to
    mean + z_threshold**2 * deviation / z: the farther out a norm is, the
    nearer to the mean it ends. The clipped norm, not the outlier, enters the
    statistics.

    Attributes:
        alpha: Weight of the past in mean and variance, in (0, 1).
        z_threshold: The z-score above which a norm is an outlier; above 0.
        warmup: Number of commits from whose norms the first mean and variance
            are computed. Until then only ``max_norm`` clips.
        max_norm: Limit that always applies; None means no such limit.
        eps: The number that is added to the deviation in the z-score; above
            0, so that nothing is divided by 0.
        norm_type: The ``norm_type`` of ``NormClip``.
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
        return factor_to(limit, norm)

    def effective(self, norm: float) -> float:
        """Return the norm, or the limit that an outlier is clipped to."""
        # The authors' mode='zscore' with clip_option='adaptive_scaling'
        # (https://github.com/bluorion-com/ZClip).
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
        # max_norm does not enter: it is no property of the norms so far.
        past = self.past.after(self.effective(norm), self.alpha, self.warmup)
        return replace(self, past=past)

    def to_dict(self) -> Dict[str, object]:
        return {'type': type(self).__name__, **self.past.to_dict()}

    def with_state(self, saved: Mapping[str, Any]) -> 'ZClip':
        return replace(self, past=NormMoments.from_dict(saved))

    def __str__(self) -> str:
        return f'clip_grad ZClip z_threshold={self.z_threshold:g}'


def factor_to(limit: float, norm: float) -> float:
    """Return the factor that clips a norm to a limit."""
    # The comparison also keeps a norm of 0 from being a divisor.
    if norm <= limit:
        return 1.0
    return limit / norm


def is_memorable(norm: float) -> bool:
    """Whether a norm may enter the statistics."""
    # Written so that NaN is refused.
    return 0 < norm <= LARGEST
