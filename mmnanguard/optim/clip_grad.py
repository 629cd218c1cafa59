import logging
from dataclasses import dataclass, fields
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from torch import Tensor

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
from mmnanguard.numerics import AdaptiveGradClip
from mmnanguard.numerics.update.grad_rules import ValueClip

__all__ = ['UserClip', 'build_clip', 'load_clip', 'mmengines_clip']

# error_if_nonfinite and foreach are accepted and change nothing: no
# non-finite gradient reaches the clip, and multi-tensor kernels are used.
KEYS = {
    'norm': ('max_norm', 'norm_type', 'error_if_nonfinite', 'foreach'),
    'value': ('clip_value', 'foreach'),
}
RULES: Dict[str, Any] = {
    rule.__name__: rule
    for rule in (TieredClip, AutoClip, ZClip, AdaptiveGradClip)
}
# What a rule remembers is no key of its config.
MEMORY = ('past', 'known', 'left_out')
GradRule = Callable[[List[Tensor], List[Tensor]], None]


def build_clip(
    config: Optional[Mapping[str, Any]],
) -> Tuple[ClipRule, Optional[GradRule]]:
    """Read ``clip_grad``: MMEngine's own two kinds, with MMEngine's meaning,
    and those of this package.

    Returns:
        A rule of numbers (norm in, coefficient out) and a rule of tensors,
        None where there is none.

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
    kind = kind_of(config)
    if kind not in (*KEYS, *RULES):
        raise GuardConfigError(
            f'{CLIP_GRAD}.type is {kind!r}: it must be '
            f'{", ".join(map(repr, KEYS))}, {", ".join(map(repr, RULES))}.'
        )
    values = {key: value for key, value in config.items() if key != 'type'}
    if kind in RULES:
        return build_rule(RULES[kind], values)
    if kind == 'norm' and 'clip_value' in config:
        raise GuardConfigError(
            f"{CLIP_GRAD} has clip_value but no type='value': write "
            f"clip_grad=dict(type='value', clip_value=...)."
        )
    check_keys(values, KEYS[kind], CLIP_GRAD)
    limit = values.get('max_norm' if kind == 'norm' else 'clip_value')
    if not (isinstance(limit, (int, float)) and limit > 0):
        raise GuardConfigError(
            f'{CLIP_GRAD}: {KEYS[kind][0]} is {limit!r}, it must be a number '
            'above 0.'
        )
    if kind == 'value':
        return NoClip(), ValueClip(float(limit))
    return NormClip(float(limit), read_norm_type(values)), None


def kind_of(config: Mapping[str, Any]) -> Any:
    """Its type, without the scope, and of a class the name."""
    kind = config.get('type', 'norm')
    kind = getattr(kind, '__name__', kind)
    if isinstance(kind, str) and kind.startswith('mmnanguard.'):
        return kind.split('.')[-1]
    return kind


def build_rule(
    rule: Any, values: Dict[str, Any]
) -> Tuple[ClipRule, Optional[GradRule]]:
    keys = [key.name for key in fields(rule) if key.name not in MEMORY]
    check_keys(values, keys, f'{CLIP_GRAD} of type {rule.__name__!r}')
    if 'norm_type' in values:
        values = {**values, 'norm_type': read_norm_type(values)}
    if rule is AdaptiveGradClip:
        return NoClip(), AdaptiveGradClip(**values)
    built = rule(**values)
    if isinstance(built, TieredClip):
        for edge, above, below in built.jumps():
            print_log(
                f'{CLIP_GRAD}: TieredClip clips a norm just above {edge:g} '
                f'to {above:g}, but one of {edge:g} to {below:g}: the larger '
                'gradient makes the larger update',
                logger='current',
                level=logging.WARNING,
            )
    return built, None


def read_norm_type(values: Mapping[str, Any]) -> float:
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
    """What of a checked ``clip_grad`` MMEngine is to see: its own kinds, as a
    copy, because it pops 'type' out of the dict.
    """
    return dict(config) if config and kind_of(config) in KEYS else None


def load_clip(rule: ClipRule, saved: Mapping[str, Any]) -> ClipRule:
    """Go on with what a checkpoint's rule remembers; the rest is the config's.

    Args:
        rule: The config's.
        saved: Of ``to_dict``; {} from a checkpoint that has none.
    """
    name = type(rule).__name__
    fresh = rule.with_state({})
    if saved.get('type') == name:
        return rule.with_state(saved)
    if len(fresh.to_dict()) > 1:  # more than its type: it does remember
        print_log(
            f'mmnanguard: the checkpoint has no statistics of {name} (its '
            f'clip_grad: {saved.get("type", "not saved")}): they start afresh',
            logger='current',
        )
    return fresh


@dataclass(frozen=True)
class UserClip:
    """A subclass's own ``_clip_grad``, at the place of MMEngine's.

    Attributes:
        wrapper: The instance of the subclass.
    """

    wrapper: OptimWrapper

    def __call__(self, params: List[Tensor], grads: List[Tensor]) -> None:
        self.wrapper._clip_grad()

    def __str__(self) -> str:
        return f'{type(self.wrapper).__name__}._clip_grad'
