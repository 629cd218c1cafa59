"""The optimizer wrappers of MMEngine and the guarded type for each."""

from typing import Collection, Dict, Mapping

from .config_value import ConfigValue, select
from .nan_hooks import WRAPPERS

__all__ = [
    'AMP',
    'DEEPSPEED',
    'FULL',
    'GUARDED_TYPES',
    'is_guarded_type',
    'is_half',
    'short',
]

FULL = 'mmnanguard.NanGuardOptimWrapper'
AMP = 'mmnanguard.NanGuardAmpOptimWrapper'
DEEPSPEED = 'mmnanguard.NanGuardDeepSpeedOptimWrapper'
# The guarded wrappers stand for themselves, so that a guard that the user
# names can replace another.
GUARDED_TYPES: Dict[str, str] = {
    'OptimWrapper': FULL,
    'AmpOptimWrapper': AMP,
    'DeepSpeedOptimWrapper': DEEPSPEED,
    'NanGuardOptimWrapper': FULL,
    'NanGuardAmpOptimWrapper': AMP,
    'NanGuardDeepSpeedOptimWrapper': DEEPSPEED,
}


def short(kind: ConfigValue) -> str:
    """Return the bare name of a type, given as a class or 'scope.Name'."""
    return str(kind).split('.')[-1].split(':')[-1]


def is_half(cfg: Mapping[str, ConfigValue], old: Collection[str]) -> bool:
    """Whether this config trains in half precision.

    Args:
        cfg: A config of 1.x or of 2.x.
        old: The keys of 1.x that count although there is an
            ``optim_wrapper``.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    live = select(cfg, ('fp16', 'optimizer_config'))
    # MMEngine ignores the keys of 1.x beside an optim_wrapper.
    if wrapper:
        live = select(live, old)
    # The hook for apex does without fp16, which such configs set to None.
    if (live.get('optimizer_config') or {}).get('use_fp16'):
        return True
    # fp16 = None switches off the half precision of a base.
    if 'fp16' in old:
        return live['fp16'] is not None
    kind = short(wrapper.get('type'))
    hand = WRAPPERS.get(kind)
    return (
        live.get('fp16') is not None
        or 'Fp16' in short((live.get('optimizer_config') or {}).get('type'))
        or 'AmpOptimWrapper' in kind
        or bool(hand and hand.is_amp)
    )


def is_guarded_type(kind: str) -> bool:
    """Whether a bare type name is a guarded wrapper of this package."""
    return f'mmnanguard.{kind}' in (FULL, AMP, DEEPSPEED)
