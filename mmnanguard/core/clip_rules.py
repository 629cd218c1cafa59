"""Clip rules that need only numbers: a norm in, a coefficient out."""

from dataclasses import dataclass

__all__ = ['NoClip', 'NormClip']


@dataclass(frozen=True)
class NoClip:
    """Gradients pass as they are."""

    norm_type: float = 2.0

    def __call__(self, norm: float) -> float:
        return 1.0

    def __str__(self) -> str:
        return 'no clipping'


@dataclass(frozen=True)
class NormClip:
    """The coefficient of ``torch.nn.utils.clip_grad_norm_``.

    Attributes:
        max_norm: Of all gradients together, inclusive.
        norm_type: Positive, or inf for the largest absolute element.
    """

    max_norm: float
    norm_type: float = 2.0

    def __call__(self, norm: float) -> float:
        """A factor in (0, 1], for a finite unscaled norm."""
        # The 1e-6 is PyTorch's own, kept so that results agree with it.
        return min(1.0, self.max_norm / (norm + 1e-6))

    def __str__(self) -> str:
        return f'clip_grad max_norm={self.max_norm:g}'
