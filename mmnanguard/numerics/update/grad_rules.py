"""Clip rules that need tensors, applied to unscaled gradients in place."""

import difflib
import itertools
import re
from dataclasses import dataclass, field, replace
from typing import FrozenSet, List, Mapping, Sequence, Set

import torch
from torch import Tensor

from mmnanguard.core import ClipRule, GuardConfigError
from mmnanguard.core.clipping.checks import (
    CLIP_GRAD,
    check_clip,
    check_positive,
)

from ..base.shards import local

__all__ = ['AdaptiveGradClip', 'ValueClip']


@dataclass(frozen=True)
class ValueClip:
    """The clip of ``torch.nn.utils.clip_grad_value_``.

    Attributes:
        clip_value: Gradients are limited to [-clip_value, clip_value]. On its
            own this turns Inf into the limit and lets NaN pass, so it is
            only called with finite gradients.
    """

    clip_value: float

    @torch.no_grad()
    def __call__(self, params: List[Tensor], grads: List[Tensor]) -> None:
        torch._foreach_clamp_max_(grads, self.clip_value)
        torch._foreach_clamp_min_(grads, -self.clip_value)

    def __str__(self) -> str:
        return f'clip_grad clip_value={self.clip_value:g}'


@dataclass(frozen=True)
class AdaptiveGradClip:
    """Limit the norm of each unit's gradient by that of its weights.

    A unit is an output row (one index of dimension 0) of a tensor with two
    dimensions or more; a smaller tensor is a unit as a whole.

    Attributes:
        clip_factor: Largest ratio of the two norms, inclusive.
        eps: Smallest norm of weights that counts. Without it, a unit that
            starts at zero would never train.
        exclude: Regexes, searched in the names of parameters. Parameters that
            match are not clipped; the paper leaves out the last layer.
        known: Ids of the parameters whose names were searched.
        left_out: Ids of the parameters that ``exclude`` matches.

    References:
        Brock, De, Smith, Simonyan, High-Performance Large-Scale Image
        Recognition Without Normalization, 2021,
        https://arxiv.org/abs/2102.06171
    """

    clip_factor: float = 0.01
    eps: float = 1e-3
    exclude: Sequence[str] = ()
    known: FrozenSet[int] = field(
        default=frozenset(), repr=False, metadata=ClipRule.STATE
    )
    left_out: FrozenSet[int] = field(
        default=frozenset(), repr=False, metadata=ClipRule.STATE
    )

    def __post_init__(self) -> None:
        check_positive('clip_factor', self.clip_factor)
        check_positive('eps', self.eps)
        # In float32 the product may not become 0, which would give 0 / 0.
        check_clip(
            self.clip_factor * self.eps >= torch.finfo(torch.float32).tiny,
            'eps',
            self.eps,
            'larger: clip_factor * eps, with which a unit of zeros begins to '
            'train, is 0 in float32',
        )
        is_list = isinstance(self.exclude, (list, tuple))
        allowed = "a list of regexes, such as ['head.fc']"
        check_clip(
            is_list and set(map(type, self.exclude)) <= {str},
            'exclude',
            self.exclude,
            allowed,
        )
        for pattern in self.exclude:
            try:
                re.compile(pattern)
            except re.error as error:
                allowed = f'a regex, this one has an error: {error}'
                check_clip(False, 'exclude', pattern, allowed)
        object.__setattr__(self, 'exclude', tuple(self.exclude))

    def resolve_names(
        self, names: Mapping[int, Sequence[str]]
    ) -> 'AdaptiveGradClip':
        """Return the rule for these parameters.

        Args:
            names: Names by the id of each parameter; a shared parameter has
                several.

        Raises:
            GuardConfigError: If a pattern of ``exclude`` is in no name.
        """
        left_out = set()
        for pattern in self.exclude:
            matching = ids_of_matches(pattern, names)
            if not matching:
                refuse_pattern(pattern, names)
            left_out |= matching
        return replace(
            self, known=frozenset(names), left_out=frozenset(left_out)
        )

    @torch.no_grad()
    def __call__(self, params: List[Tensor], grads: List[Tensor]) -> None:
        limits, clipped = [], []
        for param, grad in zip(params, grads):
            if id(param) not in self.left_out:
                limits.append(unit_norms(weights_of(param, grad)))
                clipped.append(grad)
        if not clipped:
            return
        norms = list(map(unit_norms, clipped))
        # eps lets a unit of zeros begin to train.
        torch._foreach_clamp_min_(limits, self.eps)
        torch._foreach_mul_(limits, self.clip_factor)
        # A norm of 0 makes an infinite ratio, which is limited to 1.
        torch._foreach_div_(limits, norms)
        torch._foreach_clamp_max_(limits, 1.0)
        torch._foreach_mul_(clipped, limits)

    def __str__(self) -> str:
        return f'clip_grad AdaptiveGradClip clip_factor={self.clip_factor:g}'


def ids_of_matches(
    pattern: str, names: Mapping[int, Sequence[str]]
) -> Set[int]:
    """Return the ids of the parameters that have a name with a pattern."""
    search = re.compile(pattern).search
    return {key for key in names if any(map(search, names[key]))}


def refuse_pattern(pattern: str, names: Mapping[int, Sequence[str]]) -> None:
    """Raise the error for a pattern that matches no parameter."""
    all_names = list(itertools.chain(*names.values()))
    near = difflib.get_close_matches(pattern, all_names, 3, 0.3)
    raise GuardConfigError(
        f'{CLIP_GRAD}.exclude has {pattern!r}, which is in the name of none '
        f'of the {len(names)} parameters of this optimizer. Names near to '
        f'it: {", ".join(map(repr, near or all_names[-3:]))}.'
    )


def unit_norms(tensor: Tensor) -> Tensor:
    """Return the L2 norm of each unit, in a shape that multiplies it."""
    norms: Tensor
    if tensor.dim() <= 1:
        norms = torch.linalg.vector_norm(tensor)
    else:
        dims = tuple(range(1, tensor.dim()))
        norms = torch.linalg.vector_norm(tensor, dim=dims, keepdim=True)
    return norms


def weights_of(param: Tensor, grad: Tensor) -> Tensor:
    """Return the weights that ``grad`` belongs to.

    A sparse gradient has only some rows; only their weights are returned.
    """
    weights = local(param)
    if param.grad is None or not param.grad.is_sparse or param.dim() <= 1:
        return weights
    rows, *others = param.grad._indices()
    if others:
        raise GuardConfigError(
            f'{CLIP_GRAD} is an AdaptiveGradClip, and a parameter of shape '
            f'{tuple(param.shape)} has a gradient that is sparse in more '
            'than rows: leave it out with `exclude`.'
        )
    return weights.index_select(0, rows)
