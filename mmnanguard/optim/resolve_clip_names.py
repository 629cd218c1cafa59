"""Names of parameters for ``AdaptiveGradClip``, which excludes by name."""

from typing import Sequence

from torch import Tensor

from mmnanguard.core import GuardConfigError
from mmnanguard.numerics import AdaptiveGradClip

from .guard import Guard

__all__ = ['resolve_clip_names']


def resolve_clip_names(guard: Guard, params: Sequence[Tensor]) -> None:
    """Give an ``AdaptiveGradClip`` the names of the parameters.

    Runs once, and again when the optimizer has got new parameters.

    Args:
        guard: The guard whose rule needs the names.
        params: The parameters of this update.

    Raises:
        GuardConfigError: If the rule cannot work with these parameters.
    """
    rule = guard.grad_rule
    if not isinstance(rule, AdaptiveGradClip):
        return
    # Only new parameters need a search for names to exclude.
    if rule.known.issuperset(map(id, params)):
        return
    is_flat = any(hasattr(param, '_fqns') for param in params)
    if is_flat or guard.place(list(params)).groups:
        raise GuardConfigError(
            'optim_wrapper.clip_grad is an AdaptiveGradClip, and parameters '
            'are sharded or flattened (FSDP, DTensor): a rank then holds '
            'parts of units, whose norms are not those of the units. Use '
            'DDP, or a clip by the norm of all gradients: AutoClip, ZClip, '
            'TieredClip or max_norm.'
        )
    names = guard.names()
    names_of_params = {}
    for param in guard.params:
        # A shared parameter is excluded by any of its names.
        names_of_params[id(param)] = names.of_param(param).split(' = ')
    guard.grad_rule = rule.resolve_names(names_of_params)
