"""Clip rules that need tensors, applied to unscaled gradients in place."""

from dataclasses import dataclass
from typing import List

import torch
from torch import Tensor

__all__ = ['ValueClip']


@dataclass(frozen=True)
class ValueClip:
    """``torch.nn.utils.clip_grad_value_``.

    Attributes:
        clip_value: Gradients are limited to [-clip_value, clip_value]. On its
            own this turns Inf into the limit and lets NaN pass, so it is
            only called with finite gradients.
    """

    clip_value: float

    @torch.no_grad()
    def __call__(self, grads: List[Tensor]) -> None:
        torch._foreach_clamp_max_(grads, self.clip_value)
        torch._foreach_clamp_min_(grads, -self.clip_value)

    def __str__(self) -> str:
        return f'clip_grad clip_value={self.clip_value:g}'
