"""Clip rules that need only numbers: a norm in, a coefficient out."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Dict, Mapping, Optional, Tuple

from ..checks import is_finite_number, is_number
from .checks import check_clip, check_count, check_norm_type, check_positive
from .moments import NormMoments
from .window import SortedWindow

__all__ = ['AutoClip', 'ClipRule', 'NoClip', 'NormClip', 'TieredClip', 'ZClip']

# Squares of what is remembered stay finite.
LARGEST = 1e150


class ClipRule:
    """What all rules have in common; those that remember override it.

    A rule is a value: it never changes, a commit replaces it by the next.

    Attributes:
        norm_type: Of the norm that it asks for.
    """

    norm_type: float

    def __call__(self, norm: float) -> float:
        """A factor in (0, 1], for a finite unscaled norm."""
        raise NotImplementedError

    def after(self, norm: float) -> 'ClipRule':
        """The rule for the next update.

        Args:
            norm: Of an update that was committed, unscaled, before clipping.
        """
        return self

    def to_dict(self) -> Dict[str, Any]:
        """Its type and what it remembers, in builtins."""
        return {'type': type(self).__name__}

    def with_state(self, saved: Mapping[str, Any]) -> 'ClipRule':
        """This rule with what ``to_dict`` saved; afresh where that is {}."""
        return self


@dataclass(frozen=True)
class NoClip(ClipRule):
    """Gradients pass as they are."""

    norm_type: float = 2.0

    def __call__(self, norm: float) -> float:
        return 1.0

    def __str__(self) -> str:
        return 'no clipping'


@dataclass(frozen=True)
class NormClip(ClipRule):
    """The coefficient of ``torch.nn.utils.clip_grad_norm_``.

    Attributes:
        max_norm: Of all gradients together, inclusive.
        norm_type: Positive, or inf for the largest absolute element.
    """

    max_norm: float
    norm_type: float = 2.0

    def __call__(self, norm: float) -> float:
        # The 1e-6 is PyTorch's own, kept so that results agree with it.
        return min(1.0, self.max_norm / (norm + 1e-6))

    def __str__(self) -> str:
        return f'clip_grad max_norm={self.max_norm:g}'


@dataclass(frozen=True)
class TieredClip(ClipRule):
    """The larger the norm, the more it is clipped, in steps.

    Attributes:
        tiers: Pairs (above, max_norm), in any order: a norm above the
            first number, exclusive, and in no higher tier, is clipped to
            the second as ``NormClip`` does it. A norm in no tier passes.
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
        """Where a norm just above a tier's edge keeps more than one on it.

        Returns:
            Of each such edge, that edge, what a norm just above it is clipped
            to, and what one on the edge is clipped to.
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
        window: Norms that it is taken of, the last ones; at least 2.
        warmup: Commits before the first that may be clipped.
        norm_type: As in ``NormClip``.
        past: Norms of the last ``window`` - 1 commits. A norm of 0 is not
            among them: a percentile of 0 would end training.

    References:
        Seetharaman, Wichern, Pardo, Le Roux, AutoClip: Adaptive Gradient
        Clipping for Source Separation Networks, 2020,
        https://arxiv.org/abs/2007.14469
    """

    percentile: float = 10.0
    window: int = 1000
    warmup: int = 0
    norm_type: float = 2.0
    past: SortedWindow = field(default_factory=SortedWindow)

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
        return {**super().to_dict(), 'norms': list(self.past.row)}

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
    farther out, the nearer to the mean. What it was clipped to, not the
    outlier, enters the statistics.

    Attributes:
        alpha: Weight of the past in mean and variance, in (0, 1).
        z_threshold: Above 0.
        warmup: Commits whose plain mean and variance the statistics start
            from; in these only ``max_norm`` clips.
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
    past: NormMoments = field(default_factory=NormMoments)

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
        """The norm itself, or what an outlier is clipped to."""
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
        return {**super().to_dict(), **self.past.to_dict()}

    def with_state(self, saved: Mapping[str, Any]) -> 'ZClip':
        return replace(self, past=NormMoments.from_dict(saved))

    def __str__(self) -> str:
        return f'clip_grad ZClip z_threshold={self.z_threshold:g}'


def is_memorable(norm: float) -> bool:
    """Written so that NaN is not."""
    return 0 < norm <= LARGEST
