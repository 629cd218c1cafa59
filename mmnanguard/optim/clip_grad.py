"""Build the rules that ``optim_wrapper.clip_grad`` names.

MMEngine's own two kinds keep their meaning; all other kinds are in the
registry ``CLIPS``, where a user's project can add its own.
"""

import inspect
import logging
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from mmengine.optim import OptimWrapper
from torch import Tensor

from mmnanguard._console import say
from mmnanguard.core import (
    AutoClip,
    ClipRule,
    GuardConfigError,
    NoClip,
    NormClip,
    TieredClip,
    ZClip,
)
from mmnanguard.core.checks import check_keys
from mmnanguard.core.clipping.checks import CLIP_GRAD
from mmnanguard.core.clipping.clip_rule import config_keys
from mmnanguard.core.clipping.contract import check_rule, check_rule_class
from mmnanguard.numerics import AdaptiveGradClip
from mmnanguard.numerics.update.grad_rules import ValueClip
from mmnanguard.registry import CLIPS, get_registered

__all__ = ['UserClip', 'build_clip', 'load_clip', 'mmengines_clip']

# error_if_nonfinite and foreach are accepted and change nothing: no
# non-finite gradient reaches the clip, and multi-tensor kernels are used.
MMENGINE_KEYS = {
    'norm': ('max_norm', 'norm_type', 'error_if_nonfinite', 'foreach'),
    'value': ('clip_value', 'foreach'),
}
OWN_RULES = (TieredClip, AutoClip, ZClip, AdaptiveGradClip)
for own_rule in OWN_RULES:
    CLIPS.register_module(module=own_rule)

GradRule = Callable[[List[Tensor], List[Tensor]], None]
# A rule of numbers (norm in, coefficient out) and a rule of tensors.
Rules = Tuple[ClipRule, Optional[GradRule]]


def build_clip(config: Optional[Mapping[str, Any]]) -> Rules:
    """Build the rules that a ``clip_grad`` config asks for.

    Args:
        config: ``clip_grad`` as in MMEngine, or with the type of a registered
            rule.

    Returns:
        A rule of numbers (norm in, coefficient out), and a rule of tensors
        or None.

    Raises:
        GuardConfigError: For a key or value that cannot work.
    """
    if config is None:
        return NoClip(), None
    if not isinstance(config, Mapping) or not config:
        raise GuardConfigError(
            f'{CLIP_GRAD} is {config!r}: it must be None or a dict such as '
            'dict(max_norm=35, norm_type=2).'
        )
    kind = config.get('type', 'norm')
    values = {key: value for key, value in config.items() if key != 'type'}
    if is_mmengines(config):
        return build_mmengines(kind, values)
    return build_rule(find_rule(kind), values)


def is_mmengines(config: Mapping[str, Any]) -> bool:
    """Whether ``clip_grad`` is of a kind that MMEngine has itself."""
    kind = config.get('type', 'norm')
    return isinstance(kind, str) and kind in MMENGINE_KEYS


def build_mmengines(kind: str, values: Mapping[str, Any]) -> Rules:
    """Build the rule of one of MMEngine's two kinds."""
    if kind == 'norm' and 'clip_value' in values:
        raise GuardConfigError(
            f"{CLIP_GRAD} has clip_value but no type='value': write "
            f"clip_grad=dict(type='value', clip_value=...)."
        )
    keys = MMENGINE_KEYS[kind]
    check_keys(values, keys, CLIP_GRAD)
    limit = values.get(keys[0])
    if not (isinstance(limit, (int, float)) and limit > 0):
        raise GuardConfigError(
            f'{CLIP_GRAD}: {keys[0]} is {limit!r}, it must be a number '
            'above 0.'
        )
    if kind == 'value':
        return NoClip(), ValueClip(float(limit))
    return NormClip(float(limit), read_norm_type(values)), None


def find_rule(kind: object) -> type:
    """Return the class of a rule that a config names or holds.

    Raises:
        GuardConfigError: If there is no such rule, or the class is no rule.
    """
    CLIPS.import_from_location()
    where = f'{CLIP_GRAD}.type'
    rule: object = kind
    if not inspect.isclass(kind):
        rule = get_registered(CLIPS, kind, where, list(MMENGINE_KEYS))
    if not isinstance(rule, type):
        raise GuardConfigError(
            f'{where} is {kind!r}, which is no class: a clip rule is a class '
            'that inherits from mmnanguard.core.ClipRule.'
        )
    if rule not in OWN_RULES:
        check_rule_class(rule)
    return rule


def build_rule(cls: type, values: Dict[str, Any]) -> Rules:
    """Build a rule of a registered class.

    Raises:
        GuardConfigError: For a key or value that cannot work, and for a
            user's rule that does not keep to the contract.
    """
    where = f'{CLIP_GRAD} of type {cls.__name__!r}'
    keys = config_keys(cls)
    foreign = {'max_norm', 'clip_value'} - {*keys}
    inherited = sorted(foreign.intersection(values))
    if inherited:
        raise GuardConfigError(
            f"{where} has the key {inherited[0]!r} of MMEngine's own clips: "
            'if it comes from a parent config, add _delete_=True. Allowed '
            f'keys: {", ".join(keys)}.'
        )
    check_keys(values, keys, where)
    if 'norm_type' in values:
        values = {**values, 'norm_type': read_norm_type(values)}
    try:
        rule = cls(**values)
    except TypeError as error:
        raise GuardConfigError(f'{where}: {error}.') from error
    if isinstance(rule, AdaptiveGradClip):
        return NoClip(), rule
    if cls not in OWN_RULES:
        check_rule(rule)
    if isinstance(rule, TieredClip):
        warn_of_jumps(rule)
    return rule, None


def warn_of_jumps(rule: TieredClip) -> None:
    """Warn of tiers that clip a larger norm to more than a smaller one."""
    for edge, above, below in rule.jumps():
        say(
            f'{CLIP_GRAD}: TieredClip clips a norm just above {edge:g} '
            f'to {above:g}, but one of {edge:g} to {below:g}: the larger '
            'gradient makes the larger update',
            logging.WARNING,
        )


def read_norm_type(values: Mapping[str, Any]) -> float:
    """Read ``norm_type``, which a config may also give as a string.

    Raises:
        GuardConfigError: If ``norm_type`` is not above 0.
    """
    try:
        norm_type = float(values.get('norm_type', 2))
    except (TypeError, ValueError):
        norm_type = 0.0
    if not norm_type > 0:
        raise GuardConfigError(
            f'{CLIP_GRAD}.norm_type is {values["norm_type"]!r}: it must be '
            "above 0; 'inf' is the largest absolute element."
        )
    return norm_type


def mmengines_clip(
    config: Optional[Mapping[str, Any]],
) -> Optional[Dict[str, Any]]:
    """Return the part of ``clip_grad`` that MMEngine understands, or None.

    A copy, because MMEngine pops 'type' from it.
    """
    return dict(config) if config and is_mmengines(config) else None


def load_clip(rule: ClipRule, saved: Mapping[str, Any]) -> ClipRule:
    """Return a rule with the state that a checkpoint has for it.

    Args:
        rule: The rule of the config.
        saved: The result of ``to_dict``; {} from a checkpoint without one.
    """
    name = type(rule).__name__
    fresh = rule.with_state({})
    if saved.get('type') == name:
        return rule.with_state(saved)
    if len(fresh.to_dict()) > 1:  # it has state
        say(
            f'mmnanguard: the checkpoint has no statistics of {name} (its '
            f'clip_grad: {saved.get("type", "not saved")}): they start afresh'
        )
    return fresh


@dataclass(frozen=True)
class UserClip:
    """The ``_clip_grad`` of a user's subclass, called in place of a rule.

    Attributes:
        wrapper: The wrapper, an instance of that subclass.
    """

    wrapper: OptimWrapper

    def __call__(self, params: List[Tensor], grads: List[Tensor]) -> None:
        self.wrapper._clip_grad()

    def __str__(self) -> str:
        return f'{type(self.wrapper).__name__}._clip_grad'
