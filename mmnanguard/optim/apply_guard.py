"""The guarded form of any config."""

import copy
import inspect
import logging
from pathlib import Path
from typing import Any, Dict, Set, Union

from mmengine.config import Config, ConfigDict
from mmengine.optim import AmpOptimWrapper

from mmnanguard._console import say
from mmnanguard.core import GuardConfigError
from mmnanguard.core.checks import check_keys
from mmnanguard.core.how_to_guard import (
    base_for,
    has_guarded_form,
    how_to_guard,
)

from .deepspeed.guard_config import Changes, adapt_to_deepspeed, has_deepspeed
from .deepspeed.guard_config import name_of as type_name
from .nan_guard_amp_optim_wrapper import NanGuardAmpOptimWrapper
from .nan_guard_deepspeed_optim_wrapper import NanGuardDeepSpeedOptimWrapper
from .nan_guard_optim_wrapper import NanGuardOptimWrapper
from .stopping_hooks import leave_out_stopping_hooks

__all__ = ['apply_guard']

GUARDS = Path(__file__).parents[1] / '.mim' / 'configs' / 'guards'
GUARDED_TYPES = {
    'OptimWrapper': NanGuardOptimWrapper,
    'AmpOptimWrapper': NanGuardAmpOptimWrapper,
    'DeepSpeedOptimWrapper': NanGuardDeepSpeedOptimWrapper,
    'NanGuardDeepSpeedOptimWrapper': NanGuardDeepSpeedOptimWrapper,
    'NanGuardOptimWrapper': NanGuardOptimWrapper,
    'NanGuardAmpOptimWrapper': NanGuardAmpOptimWrapper,
}
# Keys that MMEngine's builders read, not the wrapper.
BUILDER_KEYS = ('type', '_scope_', 'constructor', 'paramwise_cfg')
# The constructor that takes no keys of its own; '' stands for it too.
OWN_CONSTRUCTORS = ('', 'DefaultOptimWrapperConstructor')


def apply_guard(cfg: Config, guard: str = 'full') -> Config:
    """Return the guarded form of any mm config.

    Each dict below ``optim_wrapper`` that holds an ``optimizer`` (several in
    GAN-style configs) gets the guard's keys. Keys that the new wrapper does
    not know are dropped and logged, unless a constructor of the user's may
    read them; all other keys are kept. Overlays are
    merged by key, as ``_base_`` configs are. With MMEngine's
    DeepSpeedStrategy, precision, accumulation and norm clipping are set in
    the strategy, and hooks that cannot work there are left out and logged.
    So are hooks that end the run at a loss that is not finite: they would
    end it on an update that the guard has skipped.

    Args:
        cfg: The config; not changed.
        guard: A name (fp32, bf16, fp16, full) or the path of an overlay, a
            config with only ``optim_wrapper`` and ``default_hooks``. An
            overlay without a wrapper type keeps the precision.

    Returns:
        A new config.

    Raises:
        GuardConfigError: If the guard is not found, or the config has no
            wrapper that can be guarded.
    """
    overlay = load_overlay(guard)
    changes = Changes(
        dict(overlay.get('optim_wrapper', {})),
        dict(overlay.get('default_hooks', {})),
    )
    # The caller may build the unguarded config as well.
    cfg = copy.deepcopy(cfg)
    if not cfg.get('optim_wrapper'):
        raise GuardConfigError(
            f'the config has no optim_wrapper, so guard {guard!r} has nothing '
            f'to guard. {why_no_wrapper(cfg)}'
        )
    if has_deepspeed(cfg):
        changes = adapt_to_deepspeed(cfg, changes)
    cfg.optim_wrapper = guard_wrappers(
        cfg.optim_wrapper, changes.wrapper, 'optim_wrapper'
    )
    if 'mmnanguard.NanGuard' not in str(cfg.optim_wrapper):
        raise GuardConfigError(
            'no dict at or below optim_wrapper holds an `optimizer`, so '
            f'guard {guard!r} has nothing to guard.'
        )
    leave_out_stopping_hooks(cfg)
    hooks = hooks_to_add(cfg, changes.hooks)
    cfg.merge_from_dict(dict(default_hooks=hooks))
    return cfg


def hooks_to_add(cfg: Config, hooks: Dict[str, Any]) -> Dict[str, Any]:
    """Return the hooks of an overlay that the config has not by another name.

    Two hooks of a kind would write each row twice. This matters for the dump
    of a config that was guarded before.
    """
    present = {type_name(hook) for hook in cfg.get('custom_hooks') or ()}
    present_hooks = cfg.get('default_hooks') or {}
    for key, hook in present_hooks.items():
        # A hook of the same key is merged with that of the overlay.
        if key not in hooks:
            present.add(type_name(hook))
    return {
        key: hook
        for key, hook in hooks.items()
        if type_name(hook) not in present
    }


def why_no_wrapper(cfg: Config) -> str:
    """Return a sentence about why a config has no ``optim_wrapper``."""
    if cfg.get('optimizer'):
        return (
            'It has `optimizer`, as in 1.x; in 2.x that is '
            'optim_wrapper=dict(optimizer=dict(...)).'
        )
    if not cfg.get('train_cfg'):
        return 'It has no train_cfg either: it does not train.'
    return 'Add optim_wrapper=dict(optimizer=dict(type=..., lr=...)).'


def load_overlay(guard: str) -> Config:
    """Load an overlay by name or path."""
    named = GUARDS / f'{guard}.py'
    path = named if named.is_file() else Path(guard)
    if not path.is_file():
        names = ', '.join(sorted(file.stem for file in GUARDS.glob('*.py')))
        raise GuardConfigError(
            f'guard {guard!r} is neither one of {names} nor a file.'
        )
    overlay = Config.fromfile(str(path))
    extra = set(overlay) - {'optim_wrapper', 'default_hooks'}
    if extra:
        raise GuardConfigError(
            f'overlay {path} sets {", ".join(sorted(extra))}: an overlay has '
            'only optim_wrapper and default_hooks.'
        )
    return overlay


def guard_wrappers(
    node: Any, changes: Dict[str, Any], where: str, is_custom: bool = False
) -> Any:
    """Rewrite each dict at or below ``node`` that holds an optimizer.

    Args:
        node: An ``optim_wrapper``, or a value in it.
        changes: The keys of the overlay.
        where: The path of the node.
        is_custom: Whether a constructor above the node reads it.
    """
    if not isinstance(node, dict):
        return node
    constructor = type_name({'type': node.get('constructor')})
    is_custom = is_custom or constructor not in OWN_CONSTRUCTORS
    if 'optimizer' in node:
        return guard_wrapper(node, changes, where, is_custom)
    guarded = ConfigDict()
    for key, value in node.items():
        guarded[key] = guard_wrappers(
            value, changes, f'{where}.{key}', is_custom
        )
    return guarded


def guard_wrapper(
    wrapper: Dict[str, Any],
    changes: Dict[str, Any],
    where: str,
    is_custom: bool,
) -> ConfigDict:
    """Return a wrapper's config in its guarded form."""
    guarded_type = guarded_type_of(wrapper.get('type', 'OptimWrapper'), where)
    if 'type' in changes:
        guarded_type = guarded_type_of(changes['type'], 'overlay')
    # The signature of the type says which keys it takes.
    taken = [*inspect.signature(guarded_type).parameters, *BUILDER_KEYS]
    check_keys(changes, taken, f'overlay for {guarded_type.__name__}')
    dropped = set(wrapper) - set(taken)
    if is_custom:
        # A constructor of the user's takes its own keys out of the wrapper.
        dropped &= keys_of_wrappers()
    if dropped:
        items = [f'{key}={wrapper[key]!r}' for key in sorted(dropped)]
        say(
            f'{where}: {guarded_type.__name__} does not take '
            f'{", ".join(items)}; dropped',
            logging.WARNING,
        )
    kept = {key: value for key, value in wrapper.items() if key not in dropped}
    # Config merges by key and respects _delete_, as for _base_ files.
    merged = Config(dict(wrapper=kept))
    merged.merge_from_dict(dict(wrapper=changes))
    guarded: ConfigDict = merged.wrapper
    guarded.type = f'mmnanguard.{guarded_type.__name__}'
    return guarded


def keys_of_wrappers() -> Set[str]:
    """Return the keys that a wrapper of MMEngine or of this package takes."""
    keys = set(inspect.signature(AmpOptimWrapper).parameters)
    for kind in GUARDED_TYPES.values():
        keys.update(inspect.signature(kind).parameters)
    return keys


def guarded_type_of(type_: Union[str, type], where: str) -> type:
    """Return the guarded form of a wrapper type."""
    names = [str(type_).split('.')[-1]]
    if isinstance(type_, type):
        names = [base.__name__ for base in type_.__mro__]
    name = names[0]
    if name not in GUARDED_TYPES:
        advice = f'make it a subclass of {base_for(names)}.'
        if not has_guarded_form(name):
            advice = how_to_guard([name])
        raise GuardConfigError(
            f'{where}.type is {name}, which has no guarded form: {advice} '
            f'Guarded are: {", ".join(GUARDED_TYPES)}.'
        )
    return GUARDED_TYPES[name]
